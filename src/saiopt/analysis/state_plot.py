"""Picture of a metric against the optimizer's state, with curves of training beside."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure, label_ends


def plot_against_state(
    points: Mapping[str, tuple[float, float, float]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
    paths: Sequence[Path],
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Draw a point per optimizer, and how it came there.

    Args:
        points: By optimizer: bytes of state per parameter, mean of the metric and
            half-width of its interval.
        curves: By optimizer: steps and the metric there.
        label: Of the metric.
        paths: Files to write.
        seconds: Of a step by optimizer; with them the curves are drawn against time
            too, those of optimizers without them left out.
    """
    colors = dict(zip(points, cycle(COLORS), strict=False))
    timed = {
        name: [(step * seconds[name], value) for step, value in curve]
        for name, curve in curves.items()
        if seconds and name in seconds
    }
    num = 3 if timed else 2
    with figure(paths, (4.8 * num, 4.2), num) as (drawing, (left, *others)):
        for optimizer, (num_bytes, mean, half_width) in points.items():
            color = colors[optimizer]
            left.errorbar(num_bytes, mean, half_width, fmt="o", ms=5, color=color)
        left.set(xlabel="bytes of state per parameter", ylabel=label)
        low, high = left.get_xlim()
        left.set_xlim(min(low, 0.0), high + 0.45 * (high - min(low, 0.0)))
        against = {"steps": curves, "seconds": timed}
        for axes, (unit, lines) in zip(others, against.items(), strict=False):
            for optimizer, curve in lines.items():
                axes.plot(*zip(*curve, strict=True), color=colors[optimizer])
            axes.set(xlabel=unit, ylabel=label)
            low, high = axes.get_xlim()
            axes.set_xlim(low, high + 0.35 * (high - low))
        drawing.draw_without_rendering()
        places = [(x, y, name, colors[name]) for name, (x, y, _) in points.items()]
        label_ends(left, places)
        for axes, lines in zip(others, against.values(), strict=False):
            ends = [(*curve[-1], name, colors[name]) for name, curve in lines.items()]
            label_ends(axes, ends)
