"""Pictures of a metric over learning rate and weight decay."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saiopt.analysis.figure import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
_DIVERGED = "#F2F2F2"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One optimizer's grid or scattered trials.

    Args:
        title: Heading.
        cells: Metric by learning rate and weight decay, None where it diverged.
        higher_is_better: Whether the best value is the largest.
    """

    title: str
    cells: Mapping[tuple[float, float], float | None]
    higher_is_better: bool

    @property
    def finite(self) -> dict[tuple[float, float], float]:
        """The cells that did not diverge."""
        return {cell: value for cell, value in self.cells.items() if value is not None}

    @property
    def best(self) -> tuple[float, float] | None:
        """The best cell, if one did not diverge."""
        pick = max if self.higher_is_better else min
        return pick(self.finite, key=self.finite.__getitem__, default=None)

    @property
    def is_grid(self) -> bool:
        """Whether every learning rate was tried with every decay."""
        lrs, decays = (set(axis) for axis in zip(*self.cells, strict=True))
        return len(self.cells) == len(lrs) * len(decays)


def plot_heat_maps(
    rows: Sequence[Sequence[Panel | None]], title: str, paths: Sequence[Path]
) -> None:
    """Draw panels, the best cell framed and diverged cells hatched.

    Panels of one row share their colours. A single row is wrapped. Trials that form no
    grid are drawn as points.

    Args:
        rows: Panels of equal metric in each row; None leaves a place empty.
        title: Heading of all.
        paths: Files to write.
    """
    columns = len(rows[0])
    if len(rows) == 1:
        columns = min(columns, _COLUMNS)
    spans = [limits([p for p in row if p is not None]) for row in rows]
    places = [(p, span) for row, span in zip(rows, spans, strict=True) for p in row]
    places += [(None, (0.0, 1.0))] * (-len(places) % columns)
    height = max(len({d for _, d in p.cells}) for p, _ in places if p and p.cells)
    grids = [p for p, _ in places if p and p.cells and p.is_grid]
    width = max((len({lr for lr, _ in p.cells}) for p in grids), default=0)
    size = (
        # Room for three digits in every cell.
        max(3.1, 0.46 * width + 0.9) * columns + 0.3,
        (0.3 * min(height, 8) + 1.5) * len(places) // columns,
    )
    with figure(paths, size, columns, len(places) // columns) as (drawing, all_axes):
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)
        for axes, (panel, limit) in zip(all_axes, places, strict=True):
            if panel is None or not panel.cells:
                axes.set_axis_off()
                continue
            (_draw_grid if panel.is_grid else _draw_points)(axes, panel, limit)
            axes.set_title(panel.title, fontsize=10)
            axes.set(xlabel="learning rate", ylabel="weight decay")


def limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Span what is told apart, from the best value to one above the worst fifth.

    Args:
        panels: Of equal metric.

    Returns:
        The lower and the upper end.
    """
    values = sorted(value for panel in panels for value in panel.finite.values())
    if len(values) < 2 or values[0] == values[-1]:
        return (0.0, 1.0) if not values else (values[0] - 1, values[0] + 1)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    if panels[0].higher_is_better:
        return min(fifths[0], values[-1] - 1e-9), values[-1]
    return values[0], max(fifths[-1], values[0] + 1e-9)


def _draw_grid(axes: Axes, panel: Panel, span: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    lrs, decays = (sorted(set(axis)) for axis in zip(*panel.cells, strict=True))
    for (lr, decay), value in panel.cells.items():
        x, y = lrs.index(lr) - 0.5, decays.index(decay) - 0.5
        is_best = (lr, decay) == panel.best
        if value is None:
            axes.add_patch(
                Rectangle((x, y), 1, 1, fc=_DIVERGED, ec="#999999", hatch="////", lw=0)
            )
            continue
        shade = _shade(value, span, panel.higher_is_better)
        axes.add_patch(Rectangle((x, y), 1, 1, fc=_color(shade), ec="white"))
        text = {"ha": "center", "va": "center", "fontsize": 8}
        weight = "bold" if is_best else "normal"
        color = "white" if shade > 0.55 else "#222222"
        axes.text(
            x + 0.5, y + 0.5, _short(value, span), color=color, weight=weight, **text
        )
    if panel.best is not None:
        x, y = lrs.index(panel.best[0]) - 0.5, decays.index(panel.best[1]) - 0.5
        frame = Rectangle((x, y), 1, 1, fc="none", ec="#D55E00", lw=2.2, zorder=3)
        axes.add_patch(frame)
    axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    axes.set(xlim=(-0.55, len(lrs) - 0.45), ylim=(-0.55, len(decays) - 0.45))
    axes.grid(visible=False)


def _draw_points(axes: Axes, panel: Panel, span: tuple[float, float]) -> None:
    for (lr, decay), value in panel.cells.items():
        if value is None:
            axes.plot(lr, decay, "x", color="#999999", ms=6)
            continue
        color = _color(_shade(value, span, panel.higher_is_better))
        axes.plot(lr, decay, "o", color=color, mec="#999999", mew=0.5, ms=7)
    if panel.best is not None:
        axes.plot(*panel.best, "o", ms=11, mfc="none", mec="#D55E00", mew=2)
        value = _short(panel.finite[panel.best], span)
        axes.set_title(value, loc="right", fontsize=9, color="#D55E00")
    axes.set(xscale="log", yscale="log")


def _shade(value: float, span: tuple[float, float], higher: bool) -> float:
    """Return 0 for the worst that is told apart and 1 for the best."""
    low, high = span
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return share if higher else 1 - share


def _color(shade: float) -> tuple[float, float, float]:
    """Mix white and the palette's blue."""
    return tuple(1 - shade * (1 - c / 255) for c in (0, 0x72, 0xB2))  # pyright: ignore[reportReturnType]


def _short(value: float, span: tuple[float, float]) -> str:
    """Write three digits of the largest value, and as many decimals of all others."""
    leading = math.floor(math.log10(max(map(abs, span)) or 1))
    return f"{value:.{min(max(2 - leading, 0), 3)}f}"
