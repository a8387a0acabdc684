import pytest

from saiopt.lab.comparison.differences import differences

CLOSE = {"a": {0: 0.90, 1: 0.80, 2: 0.85}, "b": {0: 0.88, 1: 0.83, 2: 0.83}}
FAR = {"a": {0: 0.90, 1: 0.80, 2: 0.85}, "b": {0: 0.80, 1: 0.701, 2: 0.75}}


def test_what_overlaps_has_no_winner() -> None:
    found = differences("r", CLOSE, higher_is_better=True)
    assert (found.best, found.winner, found.rivals) == ("a", None, ["b"])
    assert found.lines()[0][1].endswith("(n=3)  open")


def test_what_is_better_in_every_pair_alike_wins() -> None:
    found = differences("r", FAR, higher_is_better=True)
    assert (found.best, found.winner, found.verdicts) == ("a", "a", ["worse"])
    assert found.found[0].gains == pytest.approx([-0.1, -0.099, -0.1])


def test_where_lower_is_better_the_other_wins() -> None:
    found = differences("r", FAR, higher_is_better=False)
    assert (found.best, found.winner) == ("b", "b")
    assert found.found[0].gains == pytest.approx([-0.1, -0.099, -0.1])


def test_one_seed_has_neither_winner_nor_verdict() -> None:
    found = differences("r", {"a": {0: 1.0}, "b": {0: 2.0}}, higher_is_better=True)
    assert (found.best, found.winner) == ("b", None)
    assert found.lines() == [("a", "-1.0000 (n=1)")]


def test_what_diverged_is_no_best_and_no_rival() -> None:
    values = {"a": {0: 0.9, 1: None}, "b": {0: 0.5, 1: 0.4}, "c": {0: None, 1: None}}
    found = differences("r", values, higher_is_better=True)
    assert found.best == "b"
    assert found.rivals == ["a"]
    assert dict(found.lines())["c"] == "diverged (2 of 2)"


def test_verdicts_are_corrected_for_their_number() -> None:
    # A p-value of 0.035: enough for one difference, too little for one of two.
    gains = {0: 0.10, 1: 0.15, 2: 0.20}
    best = dict.fromkeys(gains, 1.0)
    worse = {seed: 1 - gain for seed, gain in gains.items()}
    alone = differences("r", {"a": best, "b": worse}, higher_is_better=True)
    assert alone.verdicts == ["worse"]
    several = {"a": best, "b": worse, "c": {0: 1.0, 1: 0.9, 2: 0.95}}
    assert differences("r", several, higher_is_better=True).verdicts[0] == "open"


def test_all_diverged_gives_nothing() -> None:
    found = differences("r", {"a": {0: None}, "b": {0: None}}, higher_is_better=True)
    assert (found.best, found.lines()) == (None, [])
