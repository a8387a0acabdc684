"""Picture of differences between paired runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure

_MOST_COLUMNS = 3


def plot_differences(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    labels: Mapping[str, str],
    paths: Sequence[Path],
) -> None:
    """Draw one panel per recipe and one line per variant: its pairs and its interval.

    A variant has the same line in all panels, in the order in which they name them; it
    is empty where a panel lacks it.

    Args:
        panels: Recipe, variant, then one difference per pair.
        intervals: Recipe, variant, then mean and half-width of the interval.
        labels: Axis label by recipe.
        paths: Files to write.
    """
    columns = min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    size = (4.6 * columns, (1.2 + 0.37 * len(names)) * rows)
    with figure(paths, size, columns, rows) as (_, all_axes):
        for unused in all_axes[len(panels) :]:
            unused.remove()
        for axes, (recipe, variants) in zip(all_axes, panels.items(), strict=False):
            for variant, pairs in variants.items():
                place = names.index(variant)
                mean, half_width = intervals[recipe][variant]
                axes.plot(pairs, [place] * len(pairs), "o", ms=3, color="#999999")
                axes.errorbar(
                    mean, place, xerr=half_width, fmt="o", ms=5, color=COLORS[0]
                )
            axes.axvline(0, color="#666666", lw=1)
            # More labels than this run into each other where they have many digits.
            axes.locator_params(axis="x", nbins=5)
            axes.set(
                yticks=range(len(names)),
                yticklabels=names if axes in all_axes[::columns] else [],
                ylim=(-0.6, len(names) - 0.4),
                xlabel=labels[recipe],
                title=recipe,
            )
            axes.invert_yaxis()
