"""Step times as horizontal bars, with their spread and the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .rows import Row
from .table import ranked, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "#0072B2"
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
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = ranked(rows)[::-1]
    if not bars:
        raise ValueError("rows must hold one that ran, got none")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "saiopt"}):
        figure = Figure(figsize=(7.6, 1.2 + 0.26 * len(bars)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _draw(axes, bars)
        axes.set_title(_two_lines(title(bars[0])), loc="left", fontsize=8.5)
        # Dates in the file would make equal pictures differ.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _draw(axes: Axes, bars: Sequence[Row]) -> None:
    places = range(len(bars))
    medians = [row.step_ms or 0.0 for row in bars]
    low = [m - (row.step_ms_q1 or m) for m, row in zip(medians, bars, strict=True)]
    high = [(row.step_ms_q3 or m) - m for m, row in zip(medians, bars, strict=True)]
    ours = [row.optimizer.startswith("saiopt") for row in bars]
    axes.barh(
        places,
        medians,
        xerr=(low, high),
        height=0.62,
        color=[_OURS if own else _OTHERS for own in ours],
        error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 2},
    )
    floors = [row.floor_ms or 0.0 for row in bars]
    lines = axes.vlines(
        floors, [p - 0.42 for p in places], [p + 0.42 for p in places], "#D55E00"
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
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper right", frameon=False)


def _two_lines(text: str) -> str:
    """Break a title behind its second part."""
    parts = text.split(" · ")
    return " · ".join(parts[:2]) + "\n" + " · ".join(parts[2:])
