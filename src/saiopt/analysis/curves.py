"""Picture of a metric against the step, one colour per optimizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure, label_ends

Curve = Sequence[tuple[int, float]]


def plot_curves(
    curves: Mapping[str, Sequence[Curve]],
    title: str,
    label: str,
    paths: Sequence[Path],
) -> None:
    """Draw every seed thin and the mean over seeds thick, named at its end.

    The value before the first step is left out: it is the same for all and would
    squeeze what differs. A curve of a diverged run ends where it diverged.

    Args:
        curves: By optimizer, one curve of steps and values per seed.
        title: Heading.
        label: The metric with its unit.
        paths: Files to write.
    """
    with figure(paths) as (drawing, (axes,)):
        ends = []
        for color, (optimizer, seeds) in zip(
            _endless_colors(len(curves)), curves.items(), strict=True
        ):
            trained = [[point for point in seed if point[0] > 0] for seed in seeds]
            mean = mean_curve(trained)
            if len(trained) > 1:
                for seed in trained:
                    axes.plot(*_columns(seed), color=color, lw=0.7, alpha=0.5)
            axes.plot(*_columns(mean), color=color, lw=2)
            if mean:
                ends.append((*mean[-1], f"{optimizer}  {mean[-1][1]:.3f}", color))
        axes.set(xlabel="step", ylabel=label, title=title)
        axes.set_xlim(left=0)
        drawing.draw_without_rendering()
        label_ends(axes, ends)


def mean_curve(seeds: Sequence[Curve]) -> list[tuple[int, float]]:
    """Average over seeds at the steps that all of them reached.

    Args:
        seeds: One curve per seed.

    Returns:
        Steps and means.

    >>> mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0)]])
    [(1, 3.0)]
    """
    if not seeds:
        return []
    tables = [dict(seed) for seed in seeds]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return [
        (step, sum(table[step] for table in tables) / len(tables)) for step in common
    ]


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _endless_colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
