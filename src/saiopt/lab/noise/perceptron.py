"""The perceptron under SGD noise: when, and with which weights, every point fits."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from saiopt.lab.identity import code_hash
from saiopt.lab.noise.cells import middle, open_folder
from saiopt.lab.noise.perceptron_data import numpy_generator, signed_points
from saiopt.lab.studies.ledger import Ledger, Row
from saiopt.lab.studies.processes import in_processes
from saiopt.lab.training.environment import environment

_DATA, _SGD = 0, 1
# From so many points on training begins with plain steps, up to a wait of P over this:
# a few dozen points are unfitted then.
_MANY, _PATIENCE = 2**15, 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all cells share.

    Args:
        dimension: d >= 2.
        batch_size: B, points of a step, drawn without replacement.
        alpha: α of the loss relu(1 - αyF)/α.
        max_events: Steps that change the weights, before training is given up.
    """

    dimension: int = 64
    batch_size: int = 2
    alpha: float = 32768.0
    max_events: int = 5_000_000

    def __post_init__(self) -> None:
        if self.dimension < 2:
            raise ValueError(f"dimension must be at least 2, got {self.dimension}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if self.max_events < 1:
            raise ValueError(f"max_events must be at least 1, got {self.max_events}")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        chi: χ, exponent of the density of points at the boundary.
        size: P, number of points.
        temperature: T = η/B.
        seed: Of the points and of the batches.
    """

    chi: float
    size: int
    temperature: float
    seed: int


def plan(
    chis: Sequence[float],
    sizes: Sequence[int],
    temperatures: Sequence[float],
    seeds: int,
) -> list[Cell]:
    """Cross a sweep of sizes and one of temperatures at the middle of each other.

    Args:
        chis: Values of χ.
        sizes: Values of P, swept at the middle temperature.
        temperatures: Values of T, swept at the middle size.
        seeds: Their number.

    Returns:
        Each cell once, the smallest first.

    Raises:
        ValueError: If a value is out of range or a list is empty.
    """
    for name, values in {
        "chi": chis,
        "sizes": sizes,
        "temperatures": temperatures,
    }.items():
        if not values:
            raise ValueError(f"{name} must hold at least one value, got none")
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} must be finite, got {[*values]}")
    if min(chis) <= -1:
        raise ValueError(f"chi must be greater than -1, got {min(chis)}")
    if min(sizes) < 2:
        raise ValueError(f"sizes must be at least 2, got {min(sizes)}")
    if min(temperatures) <= 0:
        raise ValueError(f"temperatures must be positive, got {min(temperatures)}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    middle_size, middle_temperature = middle(sizes), middle(temperatures)
    pairs = {(size, middle_temperature) for size in sizes}
    pairs |= {(middle_size, temperature) for temperature in temperatures}
    return [
        Cell(chi, size, temperature, seed)
        for size, temperature in sorted(pairs)
        for chi in sorted(set(chis), reverse=True)
        for seed in range(seeds)
    ]


def train_cell(settings: Settings, cell: Cell) -> Row:
    """Train one cell.

    Args:
        settings: Of the study.
        cell: What to train.

    Returns:
        The cell's fields; ``fitted``, false where ``max_events`` ran out; ``events``;
        ``steps``; ``time`` = η·steps; ``norm`` = ‖w‖ and its parts ``signal`` = w₁ and
        ``noise`` = ‖w⊥‖.
    """
    from saiopt.lab.noise.perceptron_kernel import train

    data_key = (cell.chi, cell.size, cell.seed)
    points = signed_points(
        cell.size, settings.dimension, cell.chi, numpy_generator(_DATA, *data_key)
    )
    weights, steps, events, fitted = train(
        points,
        1 / (settings.alpha * cell.temperature),
        settings.batch_size,
        settings.max_events,
        numpy_generator(_SGD, *data_key, cell.temperature),
        cell.size // _PATIENCE if cell.size >= _MANY else 0,
    )
    return {
        **dataclasses.asdict(cell),
        "fitted": bool(fitted),
        "events": int(events),
        "steps": float(steps),
        "time": float(steps * cell.temperature * settings.batch_size),
        "norm": float(cell.temperature * np.linalg.norm(weights)),
        "signal": float(cell.temperature * weights[0]),
        "noise": float(cell.temperature * np.linalg.norm(weights[1:])),
    }


def open_cells(settings: Settings, runs_dir: Path) -> Ledger:
    """Open the folder of a study.

    Args:
        settings: Of the study.
        runs_dir: Where such folders live.

    Returns:
        Its finished cells.
    """
    versions = {name: version(name) for name in ("numba", "numpy")}
    code = code_hash(__name__)
    identity = {**dataclasses.asdict(settings), **versions, "code": code}
    origin = {**environment(torch.device("cpu"), "drawn", code), **versions}
    return open_folder(runs_dir, "noise-perceptron", identity, origin, Cell)


def train_cells(
    settings: Settings,
    cells: Sequence[Cell],
    finished: Ledger,
    workers: int,
    observe: Callable[[Row, bool], None],
) -> list[Row]:
    """Train the cells that are not finished yet.

    Args:
        settings: Of the study.
        cells: All that is wanted, the smallest first.
        finished: Keeps finished cells.
        workers: Processes that train.
        observe: Told of each finished row, and whether it was there before.

    Returns:
        One row per cell, in the cells' order.
    """
    finished.rows()
    keys = {cell: dataclasses.asdict(cell) for cell in cells}
    missing = [cell for cell in cells if keys[cell] not in finished]
    for key in keys.values():
        if key in finished:
            observe(finished[key], True)
    workers = min(workers, len(missing))
    if workers > 1:
        # The largest first, or the last process would work alone at the end.
        missing.reverse()
    jobs = [(settings, cell) for cell in missing]
    for row in in_processes(train_cell, jobs, workers):
        finished.add([row])
        observe(row, False)
    return [finished[keys[cell]] for cell in cells]
