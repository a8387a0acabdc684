"""Step times as horizontal bars, with their spread and the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .rows import Row
from .table import ranked, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS = "#B8B8B8"


def plot_step_times(rows: Sequence[Row], path: Path) -> None:
    """Draw the step times of one run.

    Each bar ends at the median; the whisker spans the quartiles, and the short line is
    the optimizer's own floor.

    Args:
        rows: of one run.
        path: the picture; its suffix names the format, its folder is made.

    Raises:
        ValueError: no row ran.
    """
    from saiopt.analysis.figure import COLORS, figure

    bars = ranked(rows)[::-1]
    if not bars:
        raise ValueError("rows must hold one that ran, got none")
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure([path], size=(7.6, 1.3 + 0.26 * len(bars))) as (_, (axes,)):
        _draw(axes, bars, COLORS[0], COLORS[1])
        axes.set_title(_two_lines(title(bars[0])), fontsize=8.5)


def _draw(axes: Axes, bars: Sequence[Row], ours: str, floor: str) -> None:
    places = range(len(bars))
    medians = [row.step_ms or 0.0 for row in bars]
    low = [m - (row.step_ms_q1 or m) for m, row in zip(medians, bars, strict=True)]
    high = [(row.step_ms_q3 or m) - m for m, row in zip(medians, bars, strict=True)]
    is_ours = [row.optimizer.startswith("saiopt") for row in bars]
    axes.barh(
        places,
        medians,
        xerr=(low, high),
        height=0.62,
        color=[ours if own else _OTHERS for own in is_ours],
        error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 2},
    )
    floors = [row.floor_ms or 0.0 for row in bars]
    lines = axes.vlines(
        floors, [p - 0.42 for p in places], [p + 0.42 for p in places], floor
    )
    lines.set_label("floor: every byte moved once")
    axes.set_yticks(places, [row.optimizer for row in bars])
    for place, median, row in zip(places, medians, bars, strict=True):
        end = max(median, row.step_ms_q3 or 0.0)
        text = f"{median:.0f}" if median >= 10 else f"{median:.2g}"
        axes.annotate(
            text, (end, place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.set_xlabel("milliseconds per step (median, whiskers: quartiles)")
    axes.margins(x=0.08, y=0.01)
    axes.set_xlim(left=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper right", frameon=False)


def _two_lines(text: str) -> str:
    """Break a title behind its second part."""
    parts = text.split(" · ")
    return " · ".join(parts[:2]) + "\n" + " · ".join(parts[2:])
