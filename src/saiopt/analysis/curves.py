"""Picture of a metric against the step, one colour per optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saiopt.analysis.figure import COLORS, figure, label_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[float, float]]
# A line of so few points shows where they are.
_FEW = 10


def plot_curves(
    curves: Mapping[str, Sequence[Curve]],
    title: str,
    label: str,
    paths: Sequence[Path],
    across: str = "step",
) -> None:
    """Draw every seed thin and the mean over seeds thick, named at its end.

    The vertical axis covers what training has reached. Where the value before the first
    step is far from that, the curves come from beyond the axis, and the value is
    written there. A curve of a diverged run ends where it diverged.

    Args:
        curves: By optimizer, one curve of steps and values per seed.
        title: Heading.
        label: The metric with its unit.
        paths: Files to write.
        across: The horizontal axis with its unit.
    """
    with figure(paths) as (drawing, (axes,)):
        ends = []
        for color, (optimizer, seeds) in zip(
            _endless_colors(len(curves)), curves.items(), strict=True
        ):
            mean = mean_curve(seeds)
            if len(seeds) > 1:
                for seed in seeds:
                    axes.plot(*_columns(seed), color=color, lw=0.7, alpha=0.5)
            marker = "o" if len(mean) <= _FEW else None
            axes.plot(*_columns(mean), color=color, lw=2, marker=marker, ms=4)
            if mean:
                ends.append((*mean[-1], f"{optimizer}  {mean[-1][1]:.3f}", color))
        axes.set(xlabel=across, ylabel=label, title=title)
        axes.set_xlim(left=0)
        _limit(axes, [seed for seeds in curves.values() for seed in seeds])
        drawing.draw_without_rendering()
        label_ends(axes, ends)


def _limit(axes: Axes, seeds: Sequence[Curve]) -> None:
    """Leave out of the vertical axis where curves begin, if that is far away."""
    begun = [value for seed in seeds for at, value in seed if at == 0]
    reached = [value for seed in seeds for at, value in seed if at > 0]
    if not begun or len(set(reached)) < 2:
        return
    low, high = min(reached), max(reached)
    span = high - low
    if min(begun) >= low - span and max(begun) <= high + span:
        return
    margin = 0.06 * span
    axes.set_ylim(low - margin, high + margin)
    far = min(begun) if min(begun) < low else max(begun)
    axes.annotate(
        f"at 0: {far:.3g}",
        (0, 0 if far < low else 1),
        xycoords="axes fraction",
        xytext=(4, 3 if far < low else -3),
        textcoords="offset points",
        va="bottom" if far < low else "top",
        color="#666666",
        fontsize=8.5,
    )


def mean_curve(seeds: Sequence[Curve]) -> list[tuple[float, float]]:
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
