"""The cells of a study: runs, trained in processes, and the rows that they leave."""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saiopt.lab.identity import identity_hash
from saiopt.lab.studies.ledger import Ledger, Row
from saiopt.lab.studies.processes import in_processes
from saiopt.lab.task import Task, TaskConfig
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.run import Run

Extract = Callable[[Outcome], Mapping[str, Any]]
_SETTINGS = ("recipe", "optimizer", "lr", "weight_decay", "seed")
# What two trainings of one cell need not have in common.
_CIRCUMSTANCES = ("seconds", "run", "environment")
# What of two origins lets equal code give other sums.
_DECIDING = ("device", "hardware", "threads", "torch")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run of a study.

    Args:
        run: What is trained.
        labels: What tells it from the study's other runs and is no field of a run.
    """

    run: Run
    labels: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> Row:
        """The part of its row that is known before it is trained."""
        run = self.run
        return {
            "recipe": run.recipe.name,
            "optimizer": run.optimizer,
            "lr": run.lr,
            "weight_decay": run.weight_decay,
            "seed": run.seed,
            "labels": dict(self.labels),
        }


def nothing_more(outcome: Outcome) -> Row:
    """Add nothing to a row.

    Args:
        outcome: Of its run.

    Returns:
        An empty row.
    """
    del outcome
    return {}


def results_of(
    cells: Sequence[Cell],
    options: argparse.Namespace,
    say: Callable[[str], object],
    extract: Extract = nothing_more,
    *,
    only_missing: bool = False,
    keep_weights: bool = False,
) -> list[Row]:
    """Train the cells of a study, or read its committed rows, and return all rows.

    A cell that has a row already is trained again and compared with it; a row is never
    replaced, so that a repetition of some cells shows whether they come out the same.

    Args:
        cells: To train.
        options: What the study's command line says; ``out`` gets ``results.jsonl`` and
            ``environment.json``.
        say: Told of every finished cell.
        extract: Adds to a row what its run's outcome holds; a module's function.
        only_missing: Leave cells alone that have a row.
        keep_weights: Whether folders of runs get ``weights.pt``, for ``extract``.

    Returns:
        All rows that the study has by now.

    Raises:
        SystemExit: If a row comes out otherwise than it is committed.
    """
    path = options.out / "results.jsonl"
    ledger = Ledger(path, path.with_suffix(".lock"), _key)
    if options.draw:
        return ledger.rows()
    wanted = [c for c in cells if not (only_missing and c.key in ledger)]
    place = (options.runs_dir, options.device, extract, keep_weights)
    jobs = [(together, *place) for together in by_run(wanted)]
    made = itertools.chain.from_iterable(
        in_processes(train_cells, jobs, options.workers)
    )
    equal, differing = 0, 0
    elsewhere: dict[str, None] = {}
    for count, (row, origin) in enumerate(made, 1):
        [committed] = ledger.add([row], origin)
        note = ""
        if committed is not None and _agrees(row, committed):
            equal, note = equal + 1, ", equal to the committed row"
        elif committed is not None:
            differing, note = differing + 1, f", but committed is {committed}"
            elsewhere |= dict.fromkeys(_changed(ledger.origin(committed), origin))
        say(f"{count}/{len(wanted)} {json.dumps(row)}{note}")
    if equal + differing:
        say(f"{equal} of {equal + differing} repeated rows equal the committed ones")
    if differing:
        note = "".join(f"; {change}" for change in elsewhere)
        raise SystemExit(
            f"{differing} rows differ from {path}, which is unchanged{note}"
        )
    ledger.sort(cell.key for cell in cells)
    return ledger.rows()


def by_run(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Put the cells together that are one run, which two processes must not train.

    Args:
        cells: Of a study, whose grids may overlap.

    Returns:
        All cells, in the order of the first of each run.
    """
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(json.dumps(cell.run.describe()), []).append(cell)
    return list(found.values())


def train_cells(
    cells: Sequence[Cell],
    runs_dir: Path,
    device: str,
    extract: Extract,
    keep_weights: bool = False,
) -> list[tuple[Row, Row]]:
    """Train the cells of one run, or read it if it is finished.

    Args:
        cells: To train.
        runs_dir: Where run folders live.
        device: Where to train.
        extract: Adds to the row what the outcome holds.
        keep_weights: Whether the run's folder gets ``weights.pt``.

    Returns:
        The row of each, and where it was trained, which the row names by a hash.
    """
    torch.set_num_threads(1)
    run = cells[0].run
    task = _loaded(run.recipe.task)
    place = (runs_dir, torch.device(device))
    outcome = carry_out(run, task, *place, lambda _: None, keep_weights=keep_weights)
    origin = json.loads((runs_dir / outcome.folder / "environment.json").read_text())
    return [(_row(cell, outcome, extract, origin), origin) for cell in cells]


def _row(cell: Cell, outcome: Outcome, extract: Extract, origin: Row) -> Row:
    return {
        **cell.key,
        "status": outcome.result["status"],
        "step": outcome.result["step"],
        **outcome.result["metrics"],
        **extract(outcome),
        "seconds": round(outcome.result["total_seconds"], 1),
        "run": outcome.folder,
        "environment": identity_hash(origin),
    }


@functools.cache
def _loaded(config: TaskConfig) -> Task:
    return config.load()


def _key(row: Row) -> str:
    settings = [row[name] for name in _SETTINGS]
    return json.dumps([*settings, sorted(row["labels"].items())])


def _changed(committed: Row, here: Row) -> list[str]:
    """Say what of a row's origin decides its bits and is otherwise here."""
    return [
        f"made with {name} {committed[name]}, here {here[name]}, "
        "which need not give the same bits"
        for name in _DECIDING
        if committed and committed[name] != here[name]
    ]


def _agrees(row: Row, committed: Row) -> bool:
    return all(
        row.get(name) == committed.get(name)
        for name in row.keys() | committed.keys()
        if name not in _CIRCUMSTANCES
    )
