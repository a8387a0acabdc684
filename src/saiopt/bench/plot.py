"""The picture of a run's step times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saiopt.analysis.step_times import StepTime, plot_step_times

from .rows import BenchRow
from .table import ranked, title


def plot_rows(rows: Sequence[BenchRow], path: Path) -> None:
    """Draw the step times of one run, the fastest at the top.

    Args:
        rows: of one run.
        path: the picture; its suffix names the format, its folder is made.

    Raises:
        ValueError: no row ran.
    """
    ran = ranked(rows)
    if not ran:
        raise ValueError("rows must hold one that ran, got none")
    bars = [
        StepTime(
            row.optimizer,
            row.optimizer.startswith(("saiopt", "sgdsai")),
            (row.step_ms_q1 or 0.0, row.step_ms or 0.0, row.step_ms_q3 or 0.0),
            row.floor_ms or 0.0,
        )
        for row in ran
    ]
    plot_step_times(bars, title(ran[0]), path)
