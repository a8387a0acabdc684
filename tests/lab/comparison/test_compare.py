import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console

from saiopt.lab.comparison.compare import Comparison, as_json, compare, plan, prepare
from saiopt.lab.comparison.comparison_table import comparison_tables
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.training.loop import Progress

CPU = torch.device("cpu")


def carry(
    recipe: Recipe, runs_dir: Path, lrs: dict[str, float], seeds: tuple[int, ...] = (0,)
) -> tuple[Comparison, list[Progress]]:
    seen: list[Progress] = []
    runs = plan(recipe, list(lrs), seeds, lrs)
    return compare(runs, prepare(runs), runs_dir, CPU, seen.append), seen


def table_text(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(comparison_tables(as_json(comparison))[0].for_terminal())
    return capture.get()


def test_runs_are_planned_seed_by_seed_with_the_recipes_rates(tiny: Recipe) -> None:
    runs = plan(tiny, ["adamw", "sgd"], [4, 2], {"sgd": 7.0})
    assert [(run.optimizer, run.seed, run.lr) for run in runs] == [
        ("adamw", 4, tiny.lrs["adamw"]),
        ("sgd", 4, 7.0),
        ("adamw", 2, tiny.lrs["adamw"]),
        ("sgd", 2, 7.0),
    ]


@pytest.mark.parametrize(
    ("optimizers", "seeds", "lrs", "sentence"),
    [
        (["adamw", "adamw"], [0], {}, "optimizers must be given each once, got adamw"),
        ([], [0], {}, "optimizers must be given each once, got none"),
        (["adamw"], [1, 1], {}, "seeds must be given each once, got 1 1"),
        (["adamax"], [0], {}, r"got adamax; did you mean adam\?$"),
        (["adamw"], [0], {"sgd": 1.0}, "optimizer in lr must be one of adamw, got sgd"),
        (["adamw"], [0], {"adamw": -1.0}, r"lr must be positive and finite, got -1\.0"),
    ],
)
def test_a_bad_plan_is_refused(
    tiny: Recipe,
    optimizers: list[str],
    seeds: list[int],
    lrs: dict[str, float],
    sentence: str,
) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan(tiny, optimizers, seeds, lrs)


def test_sizes_that_do_not_fit_are_refused_before_training(tiny: Recipe) -> None:
    too_large = plan(override(tiny, {"batch_size": "2000"}), ["adamw"], [0], {})
    with pytest.raises(ValueError, match="batch_size must be at most 1198, got 2000"):
        prepare(too_large)


def test_a_row_averages_the_seeds_of_one_optimizer(
    tiny: Recipe, tmp_path: Path
) -> None:
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01, "sgd": 0.1}, (0, 1, 2))
    assert [row.optimizer for row in comparison.rows] == ["adamw", "sgd"]
    for row in comparison.rows:
        values = [
            outcome.result["metrics"]["accuracy"]
            for outcome in comparison.outcomes
            if outcome.run.optimizer == row.optimizer
        ]
        assert row.metric is not None
        assert row.metric.mean == pytest.approx(sum(values) / 3)
        assert row.metric.count == 3
        assert "(n=3)" in table_text(comparison)
    adamw, sgd = comparison.rows
    assert adamw.state_bytes_per_parameter == pytest.approx(8, abs=0.2)
    assert sgd.state_bytes_per_parameter == pytest.approx(4, abs=0.1)


def test_the_step_time_of_two_seeds_lies_between_theirs(
    tiny: Recipe, tmp_path: Path
) -> None:
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01}, (0, 1))
    times = [o.result["step_seconds"]["median"] for o in comparison.outcomes]
    assert min(times) < max(times)
    assert comparison.rows[0].step_seconds == pytest.approx(sum(times) / 2)


def test_a_diverged_run_stays_in_the_table(tiny: Recipe, tmp_path: Path) -> None:
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01, "sgd": 1e30}, (0, 1))
    diverged = comparison.rows[1]
    assert diverged.metric is None
    assert set(diverged.diverged) == {0, 1}
    assert "diverged (seed 0, 1)" in table_text(comparison)
    assert as_json(comparison)["rows"][1]["diverged"] == diverged.diverged


def test_a_second_comparison_trains_only_what_is_new(
    tiny: Recipe, tmp_path: Path
) -> None:
    first, _ = carry(tiny, tmp_path, {"adamw": 0.01})
    second, seen = carry(tiny, tmp_path, {"adamw": 0.01, "sgd": 0.1})
    reused = {p.run.optimizer for p in seen if p.status == "reused"}
    trained = {p.run.optimizer for p in seen if p.status == "started"}
    assert (reused, trained) == ({"adamw"}, {"sgd"})
    assert second.rows[0] == first.rows[0]


def test_a_comparison_leaves_numbers_and_pictures(tiny: Recipe, tmp_path: Path) -> None:
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01, "sgd": 0.1})
    written = json.loads((comparison.folder / "comparison.json").read_text())
    assert written["rows"][0]["metric"]["mean"] == comparison.rows[0].metric.mean
    assert [run["optimizer"] for run in written["runs"]] == ["adamw", "sgd"]
    assert (comparison.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("curves", "seconds", "loss"):
        assert "sgd" in (comparison.folder / f"{name}.svg").read_text()


def test_the_training_loss_is_averaged_and_the_time_told(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saiopt.lab.training.outcome._POINTS", 4)
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01})
    [outcome] = comparison.outcomes
    losses = [line["loss"] for line in outcome.log if "loss" in line]
    assert [step for step, _ in outcome.losses] == [3, 6, 9, 12]
    assert outcome.losses[0][1] == pytest.approx(sum(losses[:3]) / 3)
    assert [step for step, _ in outcome.seconds] == [0, 5, 10, 12]
    times = [seconds for _, seconds in outcome.seconds]
    assert times == sorted(times)


def test_processes_that_compare_the_same_draw_one_after_the_other(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(tiny, tmp_path, {"adamw": 0.01})
    drawing: list[str] = []

    def draw(*_: object) -> None:
        drawing.append("begins")
        time.sleep(0.2)
        drawing.append("ends")

    monkeypatch.setattr("saiopt.lab.comparison.compare.plot_curves", draw)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: carry(tiny, tmp_path, {"adamw": 0.01}), range(3)))
    # Each draws three pictures.
    assert drawing == ["begins", "ends"] * 9


def test_the_table_fits_eighty_columns(tiny: Recipe, tmp_path: Path) -> None:
    lrs = {"sgdsai-sqrt-numel": 0.01, "sgdm-decoupled": 0.1}
    comparison, _ = carry(tiny, tmp_path, lrs, (0, 1))
    lines = table_text(comparison).splitlines()
    assert len(lines) == 4, "no cell is wrapped"
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert "0.01" in lines[2]


def test_a_comparison_says_what_keeps_it_from_being_an_answer(
    tiny: Recipe, tmp_path: Path
) -> None:
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01, "sgd": 1e-9})
    seed, steps, idle = comparison.cautions
    assert seed.startswith("One seed gives neither interval nor verdict")
    assert steps.startswith("12 steps are few for a recipe of 1,800")
    assert re.fullmatch("No better at the end than before the first .*sgd.", idle)
    assert as_json(comparison)["cautions"] == comparison.cautions


def test_a_full_comparison_has_nothing_against_it(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "saiopt.lab.comparison.cautions.RECIPES", {"vit-digits": lambda: tiny}
    )
    comparison, _ = carry(tiny, tmp_path, {"adamw": 0.01}, (0, 1, 2))
    assert comparison.cautions == []
