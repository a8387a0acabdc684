"""The tasks of the studies of one state per parameter, their runs, and their rows."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from wordy_source import WordySource

from saiopt.lab.identity import code_hash, identity_hash
from saiopt.lab.recipes import get_recipe
from saiopt.lab.schedules import lr_factor
from saiopt.lab.studies.ledger import Ledger, Row
from saiopt.lab.studies.processes import in_processes
from saiopt.lab.task import Task
from saiopt.lab.training.environment import environment

CPU = torch.device("cpu")
DECAY_PER_STEP, WARMUP_SHARE, CLIP_NORM = 1e-4, 0.05, 1.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task at a length.

    Args:
        task: Name.
        steps: Length of a run.
        batch_size: Examples per step.
        coordinates: The numbers that are searched, in this order.
        lr_factor: Of the first learning rates.
    """

    task: str
    steps: int
    batch_size: int
    coordinates: tuple[str, ...]
    lr_factor: float = 1.0


SETTINGS = {
    "gpt-stdlib": Setting(
        "gpt-stdlib", 300, 8, ("lr", "embedding", "momentum", "vector")
    ),
    "llama": Setting(
        "llama", 300, 8, ("lr", "embedding", "head", "momentum", "vector")
    ),
    "vit-digits": Setting(
        "vit-digits", 600, 32, ("lr", "momentum", "head", "vector"), 0.1
    ),
}


class Steps(Protocol):
    """What steps a model."""

    def step(self, factor: float) -> None:
        """Step all parameters; ``factor`` is the schedule's share of the peak."""

    def end(self) -> None:
        """Put the weights in place that are evaluated."""


@functools.cache
def load(name: str) -> Task:
    """Return a task by name."""
    return WordySource() if name == "llama" else get_recipe(name).task.load()


def trained(
    cell: Any,  # noqa: ANN401
    model: nn.Module,
    stepper: Steps,
    size: int,
    schedule: str = "cosine",
) -> Row:
    """Train a model on its task, and return its metrics and the seconds it took."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    task = load(cell.task)
    warmup = max(round(WARMUP_SHARE * cell.steps), 1)
    loss = torch.zeros(())
    for step in range(cell.steps):
        model.zero_grad()
        loss = task.loss(model, task.batch(cell.seed, step, size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        stepper.step(lr_factor(schedule, step, cell.steps, warmup))
        if not math.isfinite(loss.item()):
            break
    stepper.end()
    model.eval()
    metrics = task.evaluate(model) if math.isfinite(loss.item()) else {}
    return {**metrics, "seconds": round(time.perf_counter() - began, 1)}


class Rows:
    """The rows that are there, to which several processes add.

    Args:
        folder: Of the study.
        make: Trains one run and returns its row.
        cell: The dataclass of a run, with whose fields a row begins.
        modules: Names of the modules that make its numbers.
    """

    def __init__(
        self,
        folder: Path,
        make: Callable[[Any], Row],
        cell: type[Any],
        modules: Sequence[str],
    ) -> None:
        names = [field.name for field in dataclasses.fields(cell)]
        self._make, self._modules = make, modules
        path = folder / "results.jsonl"
        self._ledger = Ledger(
            path,
            path.with_suffix(".lock"),
            lambda row: json.dumps([row[name] for name in names], sort_keys=True),
        )

    def all(self) -> list[Row]:
        """Return all rows."""
        return self._ledger.rows()

    def result(self, cell: Any) -> Row:  # noqa: ANN401
        """Return the row of a run, which is trained if it has none."""
        self._ledger.rows()
        if cell.key in self._ledger:
            return self._ledger[cell.key]
        row = self._make(cell)
        code = code_hash(*self._modules)
        origin = environment(CPU, load(cell.task).fingerprint, code)
        row["environment"] = identity_hash(origin)
        [held] = self._ledger.add([row], origin)
        print(json.dumps(row), flush=True)
        return held or row


def all_done(jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Make calls, each a function and its arguments, in processes."""
    for _ in in_processes(_call, list(jobs), workers):
        pass


def _call(function: Callable[..., object], *arguments: Any) -> None:  # noqa: ANN401
    function(*arguments)
