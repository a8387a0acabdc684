"""Picture of differences between paired runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure


def plot_differences(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    paths: Sequence[Path],
) -> None:
    """Draw one panel per metric and one line per variant: its pairs and its interval.

    Args:
        panels: Axis label, variant, then one difference per pair.
        intervals: Axis label, variant, then mean and half-width of the interval.
        paths: Files to write.
    """
    with figure(paths, (4.6 * len(panels), 3.6), len(panels)) as (_, all_axes):
        for axes, (label, variants) in zip(all_axes, panels.items(), strict=True):
            for place, (variant, pairs) in enumerate(variants.items()):
                mean, half_width = intervals[label][variant]
                axes.plot(pairs, [place] * len(pairs), "o", ms=3, color="#999999")
                axes.errorbar(
                    mean, place, xerr=half_width, fmt="o", ms=5, color=COLORS[0]
                )
            axes.axvline(0, color="#666666", lw=1)
            axes.set(
                yticks=range(len(variants)),
                yticklabels=list(variants) if axes is all_axes[0] else [],
                xlabel=label,
            )
            axes.invert_yaxis()
