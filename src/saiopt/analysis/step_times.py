"""Picture of step times as horizontal bars, with their spread and the floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .figure import COLORS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS = "#B8B8B8"
# A bar longer than so many of the shortest is cut.
_LONGEST = 10.0


@dataclass(frozen=True)
class StepTime:
    """Hold one optimizer's bar. Times are milliseconds.

    Args:
        label: the optimizer's.
        is_ours: whether it comes from this package.
        quartiles: lower quartile, median and upper quartile.
        floor: of the optimizer's own bytes at the measured bandwidth.
    """

    label: str
    is_ours: bool
    quartiles: tuple[float, float, float]
    floor: float


def plot_step_times(bars: Sequence[StepTime], title: str, path: Path) -> None:
    """Draw one bar for each optimizer.

    Each bar ends at the median; the whisker spans the quartiles, and the short line is
    the optimizer's own floor. Bars much longer than the shortest are cut, so that
    the others can be compared; they end where nothing that is drawn whole reaches.

    Args:
        bars: at least one, from top to bottom.
        title: parts between `` · ``; a new line begins behind the second.
        path: the picture; its suffix names the format, its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure([path], size=(7.6, 1.3 + 0.26 * len(bars))) as (_, (axes,)):
        _draw(axes, bars[::-1])
        axes.set_title(_two_lines(title), fontsize=8.5)


def _draw(axes: Axes, bars: Sequence[StepTime]) -> None:
    places = range(len(bars))
    longest = _LONGEST * min(bar.quartiles[1] for bar in bars)
    whole = [bar for bar in bars if bar.quartiles[1] <= longest]
    limit = max([longest, *(max(bar.quartiles[2], bar.floor) for bar in whole)])
    low, medians, high = zip(*(_cut(bar.quartiles, limit) for bar in bars), strict=True)
    spread = (
        [m - q for m, q in zip(medians, low, strict=True)],
        [q - m for m, q in zip(medians, high, strict=True)],
    )
    axes.barh(
        places,
        medians,
        xerr=spread,
        height=0.62,
        color=[COLORS[0] if bar.is_ours else _OTHERS for bar in bars],
        error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 2},
    )
    floors = [bar.floor for bar in bars]
    lines = axes.vlines(
        floors, [p - 0.42 for p in places], [p + 0.42 for p in places], COLORS[1]
    )
    lines.set_label(
        "floor: every byte moved once, at memory's speed;\n"
        "steps of what fits the cache can be faster"
    )
    axes.set_yticks(places, [bar.label for bar in bars])
    _write_medians(axes, bars, high, limit)
    axes.set_xlabel("milliseconds per step (median, whiskers: quartiles)")
    axes.margins(x=0.08, y=0.01)
    axes.set_xlim(0, 1.1 * max(*high, *floors))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper right", framealpha=1, edgecolor="white")


def _write_medians(
    axes: Axes, bars: Sequence[StepTime], ends: Sequence[float], limit: float
) -> None:
    """Write each median behind its bar, and mark the bars that are cut."""
    for place, (bar, end) in enumerate(zip(bars, ends, strict=True)):
        median = bar.quartiles[1]
        text = f"{median:.0f}" if median >= 10 else f"{median:.2g}"
        axes.annotate(
            text,
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            # The floor of a short bar may lie behind its number.
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
        )
        if median > limit:
            axes.text(
                0.94 * limit, place, "//", weight="bold", color="white", va="center"
            )


def _cut(
    quartiles: tuple[float, float, float], limit: float
) -> tuple[float, float, float]:
    """Return the quartiles, or the limit alone if the median is beyond it."""
    return quartiles if quartiles[1] <= limit else (limit, limit, limit)


def _two_lines(text: str) -> str:
    """Break a title behind its second part."""
    parts = text.split(" · ")
    return " · ".join(parts[:2]) + "\n" + " · ".join(parts[2:])
