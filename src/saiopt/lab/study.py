"""The cells of a study: runs, trained in processes, and the rows that they leave."""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from saiopt.lab.atomic import write_atomically, write_json
from saiopt.lab.compare import plan
from saiopt.lab.outcome import Outcome, carry_out
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.run import Run, identity_hash
from saiopt.lab.task import Task, TaskConfig

Row = dict[str, Any]
Extract = Callable[[Outcome], Row]
_SETTINGS = ("recipe", "optimizer", "lr", "weight_decay", "seed")
# What two trainings of one cell need not have in common.
_CIRCUMSTANCES = ("seconds", "run", "environment")


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


def parser(
    description: str, folder: Path, recipes: Sequence[str], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """Build the command line that all studies share.

    Args:
        description: The script's docstring.
        folder: Of the study.
        recipes: Default recipes.
        seeds: Default seeds.

    Returns:
        A parser of ``recipes``, ``seeds``, ``set``, ``out``, ``runs_dir``, ``workers``,
        ``device`` and ``draw``.
    """
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--recipes", nargs="+", default=list(recipes), metavar="RECIPE")
    made.add_argument("--seeds", nargs="+", type=int, default=list(seeds), metavar="N")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="fields of recipes"
    )
    made.add_argument(
        "--out", type=Path, default=folder, metavar="PATH", help="for rows and figures"
    )
    runs_dir = Path("runs") / folder.name
    made.add_argument("--runs-dir", type=Path, default=runs_dir, metavar="PATH")
    made.add_argument("--workers", type=int, default=2, help="processes", metavar="N")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    made.add_argument(
        "--draw",
        action="store_true",
        help="train nothing, take the rows that are there",
    )
    return made


def recipes_of(options: argparse.Namespace) -> list[Recipe]:
    """Return the recipes that a study's command line names, with its settings.

    Args:
        options: What the command line says.

    Returns:
        One recipe per name.

    Raises:
        SystemExit: If a setting is given without a folder for its rows, which are not
            those of the study, or is wrong.
    """
    is_study = (options.out / "study.py").exists()
    if options.set and is_study:
        raise SystemExit("out must name another folder than the study's with set")
    try:
        settings = dict(pair.split("=", 1) for pair in options.set)
        return [override(get_recipe(name), settings) for name in options.recipes]
    except ValueError as error:
        raise SystemExit(str(error)) from None


def runs_of(options: argparse.Namespace, optimizers: Sequence[str]) -> list[Run]:
    """List a study's runs at the recipes' learning rates.

    Args:
        options: What its command line says.
        optimizers: Names.

    Returns:
        One run per recipe, seed and optimizer.

    Raises:
        SystemExit: If the command line is wrong, or a recipe lacks a learning rate.
    """
    try:
        return [
            run
            for recipe in recipes_of(options)
            for run in plan(recipe, optimizers, options.seeds, {})
        ]
    except ValueError as error:
        raise SystemExit(str(error)) from None


def results_of(
    cells: Sequence[Cell],
    options: argparse.Namespace,
    say: Callable[[str], object],
    extract: Extract = nothing_more,
    *,
    only_missing: bool = False,
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

    Returns:
        All rows that the study has by now.

    Raises:
        SystemExit: If a row comes out otherwise than it is committed.
    """
    table = _Table(options.out)
    if options.draw:
        return table.rows
    there = table.find if only_missing else lambda _: None
    wanted = [cell for cell in cells if there(cell.key) is None]
    equal, differing = 0, 0
    for count, (row, origin) in enumerate(_trained(wanted, options, extract), 1):
        committed = table.find(row)
        note = ""
        if committed is None:
            table.add(row, origin)
        elif _agrees(row, committed):
            equal, note = equal + 1, ", equal to the committed row"
        else:
            differing, note = differing + 1, f", but committed is {committed}"
        say(f"{count}/{len(wanted)} {json.dumps(row)}{note}")
    if equal + differing:
        say(f"{equal} of {equal + differing} repeated rows equal the committed ones")
    if differing:
        raise SystemExit(f"{differing} rows differ from {table.path}; it is unchanged")
    table.sort(cells)
    return table.rows


class _Table:
    """The committed rows of a study, written again whenever there is one more."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        self._origins = folder / "environment.json"
        self.rows = _lines(self.path)

    def find(self, row: Row) -> Row | None:
        key = _key(row)
        return next((old for old in self.rows if _key(old) == key), None)

    def add(self, row: Row, origin: Row) -> None:
        known = json.loads(self._origins.read_text()) if self._origins.exists() else {}
        write_json(self._origins, {**known, row["environment"]: origin})
        self.rows.append(row)
        self._write()

    def sort(self, cells: Sequence[Cell]) -> None:
        places = {_key(cell.key): place for place, cell in enumerate(cells)}
        if all(_key(row) in places for row in self.rows):
            self.rows.sort(key=lambda row: places[_key(row)])
            self._write()

    def _write(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def _trained(
    cells: Sequence[Cell], options: argparse.Namespace, extract: Extract
) -> Iterator[tuple[Row, Row]]:
    """Train cells in processes of one thread each, going on where they stopped."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        options.workers, mp_context=context, initializer=_end_with_parent
    ) as pool:
        place = (options.runs_dir, options.device, extract)
        jobs = [pool.submit(train_cell, cell, *place) for cell in cells]
        for job in as_completed(jobs):
            yield job.result()


def train_cell(
    cell: Cell, runs_dir: Path, device: str, extract: Extract
) -> tuple[Row, Row]:
    """Train one cell, or read it if it is finished.

    Args:
        cell: To train.
        runs_dir: Where run folders live.
        device: Where to train.
        extract: Adds to the row what the outcome holds.

    Returns:
        Its row, and where it was trained, which the row names by a hash.
    """
    torch.set_num_threads(1)
    task = _loaded(cell.run.recipe.task)
    outcome = carry_out(cell.run, task, runs_dir, torch.device(device), lambda _: None)
    origin = json.loads((runs_dir / outcome.folder / "environment.json").read_text())
    row = {
        **cell.key,
        "status": outcome.result["status"],
        "step": outcome.result["step"],
        **outcome.result["metrics"],
        **extract(outcome),
        "seconds": round(outcome.result["total_seconds"], 1),
        "run": outcome.folder,
        "environment": identity_hash(origin),
    }
    return row, origin


@functools.cache
def _loaded(config: TaskConfig) -> Task:
    return config.load()


def _end_with_parent() -> None:
    """Leave no worker behind when the study is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lines(path: Path) -> list[Row]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _key(row: Row) -> str:
    known = [value for name, value in row.items() if name in _SETTINGS]
    return json.dumps(known + sorted(row.get("labels", {}).items()))


def _agrees(row: Row, committed: Row) -> bool:
    return all(
        row.get(name) == committed.get(name)
        for name in row.keys() | committed.keys()
        if name not in _CIRCUMSTANCES
    )
