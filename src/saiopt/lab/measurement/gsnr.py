"""A training run that measures g-SNR as it goes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.gsnr_plot import plot_gsnr
from saiopt.analysis.gsnr_rows import GSNRRow, ratio_courses
from saiopt.lab.atomic import alone, write_json
from saiopt.lab.task import Task
from saiopt.lab.training.loop import Observer
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run import Run


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        rows: One per block and measured step.
        folder: The run's folder, which also has plot and rows.
        outcome: Of the run.
    """

    rows: Sequence[GSNRRow]
    folder: Path
    outcome: Outcome


def measure_gsnr(
    run: Run,
    task: Task,
    runs_dir: Path,
    device: torch.device,
    observe: Observer,
    ranks: Ranks = ALONE,
) -> Measured:
    """Train a run and collect the g-SNR that its log holds.

    Args:
        run: With ``gsnr_every`` > 0.
        task: Of the run's recipe.
        runs_dir: Where run folders live.
        device: Where it trains.
        observe: Told of every step.
        ranks: The processes that train together; the first one writes.

    Returns:
        The rows; ``gsnr.json``, ``gsnr.png`` and ``gsnr.svg`` are in the folder.

    Raises:
        RunFolderError: If the run's folder is damaged or in use.
    """
    outcome = carry_out(run, task, runs_dir, device, observe, ranks)
    rows = [_row(row) for line in outcome.log for row in line.get("gsnr", [])]
    measured = Measured(rows, runs_dir / outcome.folder, outcome)
    ranks.on_first(lambda: _write(measured, run))
    return measured


def _row(logged: Mapping[str, Any]) -> GSNRRow:
    known = {name: value for name, value in logged.items() if value is not None}
    return GSNRRow(**{"gsnr": math.nan, **known})


def _write(measured: Measured, run: Run) -> None:
    title = f"{run.recipe.name} trained with {run.optimizer}"
    paths = [measured.folder / f"gsnr.{suffix}" for suffix in ("png", "svg")]
    with alone(measured.folder / "gsnr.lock"):
        plot_gsnr(ratio_courses(measured.rows), paths, title)
        write_json(measured.folder / "gsnr.json", rows_as_json(measured.rows))


def rows_as_json(rows: Sequence[GSNRRow]) -> list[dict[str, str | int | float | None]]:
    """Return rows as JSON types, NaN as null.

    Args:
        rows: To be written.

    Returns:
        The rows with their ratio to √n.
    """
    return [
        {
            name: value if isinstance(value, str) or math.isfinite(value) else None
            for name, value in {**dataclasses.asdict(row), "ratio": row.ratio}.items()
        }
        for row in rows
    ]
