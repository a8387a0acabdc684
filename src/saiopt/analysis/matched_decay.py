"""Picture of a metric against the decay per step, η·λ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saiopt.analysis.figure import figure
from saiopt.analysis.heat_map import Panel, limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4


def plot_matched_decay(
    panels: Sequence[Panel], label: str, title: str, paths: Sequence[Path]
) -> None:
    """Draw one panel per optimizer and one curve per learning rate.

    Where good cells share η·λ, the curves peak above each other. Diverged cells are
    left out, and so are cells without decay. All panels share their vertical axis, of
    which the worst fifth of all values is left out.

    Args:
        panels: Grids of equal metric.
        label: The metric with its unit.
        title: Heading of all.
        paths: Files to write.
    """
    from matplotlib import colormaps

    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size = (max(3.0 * columns + 1.0, 5.4), 2.6 * rows + 0.6)
    lrs = sorted({lr for panel in panels for lr, _ in panel.cells})
    shades = colormaps["viridis"]
    colors = {lr: shades(0.9 * i / max(len(lrs) - 1, 1)) for i, lr in enumerate(lrs)}
    with figure(paths, size, columns, rows) as (drawing, all_axes):
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)
        for axes, panel in zip(all_axes, panels, strict=False):
            for lr in lrs:
                cells = sorted(c for c in panel.finite if c[0] == lr and c[1] > 0)
                axes.plot(
                    [lr * decay for _, decay in cells],
                    [panel.finite[cell] for cell in cells],
                    "o-",
                    color=colors[lr],
                    ms=4,
                    label=f"{lr:g}",
                )
            axes.set_title(panel.title, fontsize=10)
            axes.set(xscale="log", xlabel="decay per step, lr·weight decay")
            if axes is not all_axes[0]:
                axes.sharey(all_axes[0])
        for axes in all_axes[len(panels) :]:
            axes.set_axis_off()
        _limit(all_axes[0], panels)
        all_axes[0].set_ylabel(label)
        drawing.legend(
            *all_axes[0].get_legend_handles_labels(),
            loc="outside right upper",
            title="learning rate",
            frameon=False,
        )


def _limit(axes: Axes, panels: Sequence[Panel]) -> None:
    low, high = limits(panels)
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
