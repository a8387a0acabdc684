"""Picture of a metric against the learning rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure

_MOST_COLUMNS = 3


def plot_sweep(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float | None]]]],
    labels: Mapping[str, str],
    higher_is_better: Mapping[str, bool],
    paths: Sequence[Path],
) -> None:
    """Draw one panel per recipe and one curve per optimizer, its best value ringed.

    Args:
        panels: Recipe, optimizer, then learning rates and values; None diverged.
        labels: Axis label by recipe.
        higher_is_better: By recipe.
        paths: Files to write.
    """
    columns = min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    size = (4.6 * columns, 3.4 * rows + 0.4)
    with figure(paths, size, columns, rows) as (drawing, all_axes):
        for unused in all_axes[len(panels) :]:
            unused.remove()
        for axes, (recipe, curves) in zip(all_axes, panels.items(), strict=False):
            for color, (optimizer, points) in zip(COLORS, curves.items(), strict=False):
                finite = [(lr, value) for lr, value in points if value is not None]
                if not finite:
                    continue
                axes.plot(
                    *zip(*finite, strict=True), "o-", ms=3, color=color, label=optimizer
                )
                pick = max if higher_is_better[recipe] else min
                best = pick(finite, key=lambda point: point[1])
                axes.plot(*best, "o", ms=10, mfc="none", mec=color)
            axes.set(
                xscale="log",
                xlabel="peak learning rate",
                ylabel=labels[recipe],
                title=recipe,
            )
        names = all_axes[0].get_legend_handles_labels()
        drawing.legend(*names, loc="outside lower center", ncols=7, frameon=False)
