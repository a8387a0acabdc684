"""Trackers get the numbers of the log, whatever interrupts a run."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saiopt.cli import main
from saiopt.lab.recipe import Recipe
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.run import Run
from saiopt.lab.training.trackers import run_name, tracking

CPU = torch.device("cpu")


def carry(run: Run, folder: Path, tracker: str, stop_at: int | None = None) -> Outcome:
    def observe(progress: Progress) -> None:
        if stop_at is not None and progress.step == stop_at:
            raise KeyboardInterrupt

    with tracking(tracker, folder, observe) as both:
        return carry_out(run, run.recipe.task.load(), folder, CPU, both)


def logged(outcome: Outcome) -> dict[str, dict[int, float]]:
    """Return the log's numbers by name and finished steps."""
    found: dict[str, dict[int, float]] = {}
    for line in outcome.log:
        if "metrics" in line:
            for name, value in line["metrics"].items():
                found.setdefault(f"validation/{name}", {})[line["step"]] = value
            continue
        numbers = {k: line[k] for k in ("loss", "lr", "grad_norm", "step_seconds")}
        numbers |= {f"gsnr/{row['block']}": row["gsnr"] for row in line.get("gsnr", [])}
        for name, value in numbers.items():
            found.setdefault(name, {})[line["step"] + 1] = value
    return found


def in_tensorboard(folder: Path, run: Run) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard" / run_name(run)))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("stop_at", [None, 6, 11])
def test_tensorboard_shows_the_log(
    tiny: Recipe, tmp_path: Path, stop_at: int | None
) -> None:
    run = dataclasses.replace(Run(tiny, "sgdsai", 0.1, 0), gsnr_every=3)
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            carry(run, tmp_path, "tensorboard", stop_at)
    expected = logged(carry(run, tmp_path, "tensorboard"))
    found = in_tensorboard(tmp_path, run)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # In float32, as the file keeps them.
        assert found[name] == {k: torch.tensor(v).item() for k, v in values.items()}


class Library(types.ModuleType):
    """Records what a run tells Weights & Biases."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.numbers: list[tuple[int, dict[str, float]]] = []
        self.num_finished = 0

    def init(self, **settings: Any) -> "Library":
        json.dumps(settings["config"])
        self.inits.append(settings)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.numbers.append((step, numbers))

    def finish(self) -> None:
        self.num_finished += 1


def test_weights_and_biases_gets_the_log_offline(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = Run(tiny, "adamw", 0.1, 0)
    expected = logged(carry(run, tmp_path, "wandb"))
    found: dict[str, dict[int, float]] = {}
    for step, numbers in library.numbers:
        for name, value in numbers.items():
            found.setdefault(name, {})[step] = value
    assert found == expected
    assert all(numbers for _, numbers in library.numbers)
    [settings] = library.inits
    assert settings["mode"] == "offline"
    assert settings["id"] == settings["name"] == run_name(run)
    assert library.num_finished == 1
    carry(run, tmp_path, "wandb")
    assert len(library.inits) == 1, "a finished run is not tracked again"


def test_a_tracker_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["train", "resnet-digits", "--tracker", "wandb", "--set", "steps=1"]
    assert main([*command, "--runs-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "tracker must be installed, pip install wandb, got wandb" in said
    assert not list(tmp_path.iterdir())
