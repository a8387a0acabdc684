"""Picture of a metric against the number of steps that a run was planned for."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure, label_ends

_DASHES = ("-", "--")


def plot_horizons(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    labels: Mapping[str, str],
    paths: Sequence[Path],
) -> None:
    """Draw one panel per recipe and one line per optimizer, its name at its end.

    Args:
        panels: Recipe, optimizer, then steps, mean and standard deviation over seeds.
        labels: Axis label by recipe.
        paths: Files to write.
    """
    with figure(paths, (6.2 * len(panels), 4.6), len(panels)) as (drawing, all_axes):
        ends = []
        for axes, (recipe, lines) in zip(all_axes, panels.items(), strict=True):
            styles = zip(cycle(COLORS), _dashes(), lines.items(), strict=False)
            names = []
            for color, dashes, (optimizer, points) in styles:
                if not points:
                    continue
                steps, means, spreads = zip(*points, strict=True)
                axes.errorbar(
                    steps, means, spreads, fmt="o", ls=dashes, ms=4, color=color
                )
                names.append((steps[-1], means[-1], optimizer, color))
            axes.set(xscale="log", xlabel="steps of the whole run", title=recipe)
            axes.set_ylabel(labels[recipe])
            steps = sorted({x for points in lines.values() for x, _, _ in points})
            axes.set_xticks(steps, [f"{x:g}" for x in steps])
            axes.minorticks_off()
            # Room for the names.
            low, high = axes.get_xlim()
            axes.set_xlim(low, high * (high / low) ** 0.35)
            ends.append(names)
        drawing.draw_without_rendering()
        for axes, names in zip(all_axes, ends, strict=True):
            label_ends(axes, names)


def _dashes() -> Sequence[str]:
    """Return full lines for each colour once, then broken ones."""
    return [dash for dash in _DASHES for _ in COLORS]
