"""Picture of a metric against the learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from saiopt.analysis.figure import COLORS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Points: TypeAlias = Sequence[tuple[float, float | None]]

_MARKERS = "os^"
_SHOWN = 0.8
_ABREAST = 3


def plot_sweep(
    panels: Mapping[str, Mapping[str, Points]],
    labels: Mapping[str, str],
    higher_is_better: Mapping[str, bool],
    paths: Sequence[Path],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Draw one row per recipe and one curve per optimizer, its best value ringed.

    The panels of a row share their scale, which covers the better four fifths of the
    row's values: curves of what nearly diverged leave the panel. A dotted line marks
    the row's best value.

    Args:
        panels: Recipe, optimizer, then learning rates and values; None diverged.
        labels: Axis label by recipe.
        higher_is_better: By recipe.
        paths: Files to write.
        columns: Title, then optimizers, of panels side by side; None draws all of a
            recipe in one panel. An optimizer that is in no column is not drawn.
    """
    if columns is None:
        columns = {"": list(dict.fromkeys(itertools.chain(*panels.values())))}
    count = len(columns)
    size = (5.6 if count == 1 else 3.9 * count, 2.6 * len(panels) + 1.0)
    with figure(paths, size, count, len(panels)) as (_, all_axes):
        for row, (recipe, curves) in enumerate(panels.items()):
            side_by_side = all_axes[row * count : (row + 1) * count]
            for axes, optimizers in zip(side_by_side, columns.values(), strict=True):
                _draw_panel(axes, optimizers, curves, higher_is_better[recipe])
            side_by_side[0].set_ylabel(f"{recipe}\n{labels[recipe]}")
        for axes, (title, optimizers) in zip(all_axes, columns.items(), strict=False):
            _add_legend(axes, title, optimizers)
        for axes in all_axes[-count:]:
            axes.set_xlabel("peak learning rate")


def plot_overview(
    panels: Mapping[str, Mapping[str, Points]],
    labels: Mapping[str, str],
    higher_is_better: Mapping[str, bool],
    optimizers: Sequence[str],
    paths: Sequence[Path],
) -> None:
    """Draw one small panel per recipe, with some of the optimizers.

    Args:
        panels: As in :func:`plot_sweep`.
        labels: Axis label by recipe.
        higher_is_better: By recipe.
        optimizers: What is drawn.
        paths: Files to write.
    """
    columns = min(len(panels), _ABREAST)
    rows = -(-len(panels) // columns)
    size = (3.4 * columns, 2.7 * rows + 0.4)
    with figure(paths, size, columns, rows) as (drawing, all_axes):
        for unused in all_axes[len(panels) :]:
            unused.remove()
        for axes, (recipe, curves) in zip(all_axes, panels.items(), strict=False):
            drawn = {name: curves.get(name, ()) for name in optimizers}
            _draw_panel(axes, optimizers, drawn, higher_is_better[recipe])
            axes.set_title(recipe)
            axes.set_ylabel(labels[recipe], fontsize=8.5)
        for axes in all_axes[len(panels) - columns : len(panels)]:
            axes.set_xlabel("peak learning rate")
        drawing.legend(
            handles=_handles(optimizers),
            loc="outside lower center",
            ncols=len(optimizers),
            frameon=False,
        )


def _draw_panel(
    axes: Axes,
    optimizers: Sequence[str],
    curves: Mapping[str, Points],
    higher_is_better: bool,
) -> None:
    pick = max if higher_is_better else min
    for name, (marker, color) in zip(optimizers, _styles(), strict=False):
        finite = [
            (lr, value) for lr, value in curves.get(name, ()) if value is not None
        ]
        if not finite:
            continue
        axes.plot(*zip(*finite, strict=True), f"{marker}-", ms=3.5, lw=1.4, color=color)
        best = pick(finite, key=lambda point: point[1])
        axes.plot(*best, "o", ms=10, mfc="none", mec=color)
    values = [v for points in curves.values() for _, v in points if v is not None]
    values.sort(reverse=higher_is_better)
    axes.set_xscale("log")
    if values:
        shown = values[: max(2, round(_SHOWN * len(values)))]
        margin = 0.06 * (max(shown) - min(shown))
        # Equal values alone would make limits that are equal too.
        if margin > 0:
            axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.axhline(values[0], color="#999999", lw=1, ls=":", zorder=0.5)


def _add_legend(axes: Axes, title: str, optimizers: Sequence[str]) -> None:
    axes.legend(
        handles=_handles(optimizers),
        title=title,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        columnspacing=1.0,
    )


def _handles(optimizers: Sequence[str]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], marker=marker, ms=3.5, lw=1.4, color=color, label=name)
        for name, (marker, color) in zip(optimizers, _styles(), strict=False)
    ]


def _styles() -> list[tuple[str, str]]:
    return list(itertools.product(_MARKERS, COLORS))
