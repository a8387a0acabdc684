import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saiopt.lab.atomic import alone
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.schedules import lr_factor
from saiopt.lab.task import Task
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.run import Run
from saiopt.lab.training.run_folder import RunFolderError

CPU = torch.device("cpu")


def ignore(progress: Progress) -> None:
    pass


def carry(
    run: Run,
    runs_dir: Path,
    observe: Callable[[Progress], None] = ignore,
    task: Task | None = None,
) -> Outcome:
    return carry_out(run, task or run.recipe.task.load(), runs_dir, CPU, observe)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: without_times(v) for k, v in value.items() if not k.endswith("_seconds")
        }
    if isinstance(value, list | tuple):
        return [without_times(item) for item in value]
    return value


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def observe(progress: Progress) -> None:
        if progress.step == step and progress.loss is not None:
            raise KeyboardInterrupt

    return observe


def test_equal_runs_give_equal_numbers(tiny: Recipe, tmp_path: Path) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0)
    first, second = (carry(run, tmp_path / name) for name in ("a", "b"))
    assert without_times(first.log) == without_times(second.log)
    assert without_times(first.result) == without_times(second.result)


def test_another_seed_gives_other_numbers(tiny: Recipe, tmp_path: Path) -> None:
    values = [
        carry(Run(tiny, "sgdsai", 0.1, seed), tmp_path).result["metrics"]["loss"]
        for seed in (0, 1)
    ]
    assert values[0] != values[1]


@pytest.mark.parametrize(
    "optimizer",
    ["sgdsai", "adamw", "sgd", "sgdsai-orthogonal-int4", "sgdsai-factored"],
)
@pytest.mark.parametrize("step", [2, 4, 5, 11])
def test_a_stopped_run_ends_with_the_numbers_of_one_that_was_not(
    tiny: Recipe, tmp_path: Path, optimizer: str, step: int
) -> None:
    run = dataclasses.replace(Run(tiny, optimizer, 0.1, 0), gsnr_every=3)
    whole = carry(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        carry(run, tmp_path / "stopped", interrupt_at(step))
    seen: list[Progress] = []
    resumed = carry(run, tmp_path / "stopped", seen.append)
    # A step is told before its checkpoint is written.
    assert seen[0] == Progress(run, (step - 1) // 4 * 4, status="started")
    assert without_times(resumed.log) == without_times(whole.log)
    assert without_times(resumed.result) == without_times(whole.result)


def test_a_stopped_run_of_other_code_is_not_gone_on_with(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0)
    with pytest.raises(KeyboardInterrupt):
        carry(run, tmp_path, interrupt_at(6))
    monkeypatch.setattr("saiopt.lab.training.outcome.code_hash", lambda *_: "edited")
    seen: list[Progress] = []
    outcome = carry(run, tmp_path, seen.append)
    assert seen[0] == Progress(run, 0, status="started")
    origin = json.loads((tmp_path / outcome.folder / "environment.json").read_text())
    assert origin["code"] == "edited"


def test_a_finished_run_can_be_read_while_another_process_reads_it(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = Run(tiny, "adamw", 0.1, 0)
    first = carry(run, tmp_path)
    with alone(tmp_path / first.folder / "lock"):
        assert carry(run, tmp_path) == first


def test_the_log_has_every_step_and_evaluation(tiny: Recipe, tmp_path: Path) -> None:
    outcome = carry(Run(tiny, "adamw", 0.1, 0), tmp_path)
    steps = [line["step"] for line in outcome.log if "loss" in line]
    assert steps == list(range(12))
    assert [step for step, _ in outcome.curve] == [0, 5, 10, 12]
    assert (
        outcome.curve[-1][1] == outcome.value == outcome.result["metrics"]["accuracy"]
    )


def test_the_median_step_time_is_that_of_the_log(tiny: Recipe, tmp_path: Path) -> None:
    outcome = carry(Run(tiny, "adamw", 0.1, 0), tmp_path)
    times = [line["step_seconds"] for line in outcome.log if "step_seconds" in line]
    assert len(times) % 2 == 0
    found = outcome.result["step_seconds"]
    assert found["median"] == pytest.approx(statistics.median(times))
    assert min(times) <= found["p10"] <= found["median"] <= found["p90"] <= max(times)


def test_the_learning_rate_follows_the_schedule(tiny: Recipe, tmp_path: Path) -> None:
    recipe = override(tiny, {"schedule": "linear", "warmup_fraction": "0.25"})
    outcome = carry(Run(recipe, "sgdsai", 0.1, 0), tmp_path)
    lrs = [line["lr"] for line in outcome.log if "lr" in line]
    expected = [0.1 * lr_factor("linear", step, 12, 3) for step in range(12)]
    assert lrs == expected


def test_a_clipped_gradient_takes_a_shorter_step(tiny: Recipe, tmp_path: Path) -> None:
    recipe = override(tiny, {"steps": "1", "decay_per_step": "0"})
    start = recipe.task.load().build_model(0).state_dict()

    def moved(clip_norm: str) -> float:
        clipped = override(recipe, {"clip_norm": clip_norm})
        task = _KeepModel(clipped.task.load())
        carry(Run(clipped, "sgdm-decoupled", 1.0, 0), tmp_path, task=task)
        after = task.model.state_dict()
        return sum(float((after[k] - start[k]).square().sum()) for k in start) ** 0.5

    assert moved("0.01") == pytest.approx(0.01, rel=1e-3)
    assert moved("0") > 0.1


def test_all_optimizers_see_the_same_model_and_data(
    tiny: Recipe, tmp_path: Path
) -> None:
    first_lines = []
    batches = []
    for optimizer in ("sgdsai", "adamw", "sgdm-decoupled"):
        task = _KeepModel(tiny.task.load())
        outcome = carry(Run(tiny, optimizer, 0.1, 0), tmp_path, task=task)
        first_lines.append((outcome.log[0]["metrics"], outcome.log[1]["loss"]))
        batches.append([batch["images"] for batch in task.batches])
    assert first_lines[0] == first_lines[1] == first_lines[2]
    for other in batches[1:]:
        assert all(map(torch.equal, batches[0], other))


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1e30), ("adamw", 1e30)])
def test_a_diverged_run_ends_early_and_says_so(
    tiny: Recipe, tmp_path: Path, optimizer: str, lr: float
) -> None:
    seen: list[Progress] = []
    outcome = carry(Run(tiny, optimizer, lr, 0), tmp_path, seen.append)
    assert outcome.result["status"] == "diverged"
    assert outcome.result["step"] < 12
    assert outcome.value is None
    assert seen[-1].status == "diverged"
    assert carry(Run(tiny, optimizer, lr, 0), tmp_path).result == outcome.result


def test_a_finished_run_is_reused(tiny: Recipe, tmp_path: Path) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0)
    first = carry(run, tmp_path)
    seen: list[Progress] = []
    second = carry(run, tmp_path, seen.append)
    assert [progress.status for progress in seen] == ["reused"]
    assert second == first


def test_a_damaged_checkpoint_stops_the_run_and_stays(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0)
    with pytest.raises(KeyboardInterrupt):
        carry(run, tmp_path, interrupt_at(6))
    [folder] = tmp_path.iterdir()
    (folder / "checkpoint.pt").write_bytes(b"PK damaged")
    log = (folder / "log.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"damaged .*checkpoint\.pt"):
        carry(run, tmp_path)
    assert (folder / "checkpoint.pt").read_bytes() == b"PK damaged"
    assert (folder / "log.jsonl").read_bytes() == log


def test_measuring_gsnr_changes_no_number(tiny: Recipe, tmp_path: Path) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0)
    plain = carry(run, tmp_path)
    probed = carry(dataclasses.replace(run, gsnr_every=5), tmp_path)
    assert without_times(probed.result) == without_times(plain.result)
    measured = [line["step"] for line in probed.log if "gsnr" in line]
    assert measured == [0, 5, 10, 11]


def test_the_result_counts_state_and_times(tiny: Recipe, tmp_path: Path) -> None:
    result = carry(Run(tiny, "adamw", 0.001, 0), tmp_path).result
    per_parameter = result["state_bytes"] / result["num_parameters"]
    assert 8 <= per_parameter < 8.2
    times = result["step_seconds"]
    assert 0 < times["p10"] <= times["median"] <= times["p90"] < result["total_seconds"]


class _KeepModel:
    """A task that remembers the model and the batches it was asked for."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self.fingerprint, self.loss, self.evaluate = (
            task.fingerprint,
            task.loss,
            task.evaluate,
        )
        self.batches: list[Any] = []

    def build_model(self, seed: int) -> torch.nn.Module:
        self.model = self._task.build_model(seed)
        return self.model

    def batch(self, seed: int, step: int, size: int) -> Any:
        self.batches.append(self._task.batch(seed, step, size))
        return self.batches[-1]
