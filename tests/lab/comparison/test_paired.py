import pytest

from saiopt.lab.comparison.paired import (
    Pairing,
    compare_pairs,
    corrected_verdicts,
    mean_metric,
)


def row(optimizer, seed, value, recipe="resnet-digits", metric="accuracy"):
    held = {} if value is None else {metric: value}
    return {"recipe": recipe, "optimizer": optimizer, "seed": seed, **held}


ROWS = [
    *(row("sgdsai", seed, 0.9 + seed / 100) for seed in range(4)),
    *(row("adamw", seed, 0.8 + seed / 50) for seed in range(3)),
    row("adamw", 3, None),
]


def test_gains_pair_by_seed_and_leave_out_what_diverged():
    found = compare_pairs(ROWS, "resnet-digits", "sgdsai", "adamw")
    assert found.gains == pytest.approx([0.1, 0.09, 0.08])
    assert found.num_diverged == 1
    assert found.verdict == "better"
    other = compare_pairs(ROWS, "resnet-digits", "adamw", "sgdsai")
    assert other.gains == pytest.approx([-0.1, -0.09, -0.08])
    assert other.verdict == "worse"


def test_a_smaller_loss_is_a_gain():
    rows = [
        row("sgdsai", 0, 2.0, "gpt-stdlib", "loss"),
        row("adamw", 0, 3.0, "gpt-stdlib", "loss"),
    ]
    found = compare_pairs(rows, "gpt-stdlib", "sgdsai", "adamw")
    assert found.gains == [1.0]
    assert found.verdict == "open"


def test_an_interval_that_holds_zero_is_open():
    assert Pairing("vit-digits", "a", "b", [1.0, -1.0, 1.0]).verdict == "open"
    assert Pairing("vit-digits", "a", "b", [], 2).verdict == "open"


def test_two_rows_of_a_seed_are_refused():
    with pytest.raises(ValueError, match="rows must be one per seed"):
        compare_pairs([*ROWS, ROWS[0]], "resnet-digits", "sgdsai", "adamw")


def test_a_mean_is_over_the_runs_that_finished():
    found = mean_metric(ROWS, "resnet-digits", "adamw")
    assert found is not None
    assert (found.count, found.mean) == (3, pytest.approx(0.82))
    assert mean_metric(ROWS, "resnet-digits", "sgd") is None


def test_verdicts_of_one_table_are_corrected_for_their_number():
    def of(*gains: float) -> Pairing:
        return Pairing("gpt-stdlib", "a", "b", gains)

    clear = of(1.0, 1.01, 0.99, 1.0, 1.02)
    worse = of(-1.0, -1.01, -0.99, -1.0, -1.02)
    # p = 0.037: excludes 0 alone, not where two are left.
    barely = of(1.0, 0.1, 1.4, 0.6, 0.4)
    assert barely.verdict == "better"
    assert corrected_verdicts([barely]) == ["better"]
    assert corrected_verdicts([barely, of(1.0, -1.0), clear, worse, of(1.0), of()]) == [
        "open",
        "open",
        "better",
        "worse",
        "open",
        "open",
    ]


def test_holm_holds_each_p_value_against_the_comparisons_that_are_left():
    # p of 0.037 and 0.002: the second is below 0.05 / 2, then the first below 0.05 / 1.
    found = [
        Pairing("gpt-stdlib", "a", "b", gains)
        for gains in ((1.0, 0.1, 1.4, 0.6, 0.4), (1.0, 0.6, 1.4, 0.9, 0.8))
    ]
    assert corrected_verdicts(found) == ["better", "better"]
    assert corrected_verdicts([*found, found[0]]) == ["open", "better", "open"]


def test_comparisons_to_come_are_counted():
    found = [Pairing("gpt-stdlib", "a", "b", (1.0, 0.6, 1.4, 0.9, 0.8))]
    # p of 0.002.
    assert corrected_verdicts(found, planned=20) == ["better"]
    assert corrected_verdicts(found, planned=30) == ["open"]


def test_equal_gains_leave_no_doubt():
    found = [Pairing("gpt-stdlib", "a", "b", [value] * 3) for value in (0.5, 0.0)]
    assert corrected_verdicts(found) == ["better", "open"]
