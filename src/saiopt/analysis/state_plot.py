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
) -> None:
    """Draw a point per optimizer, and how it came there.

    Args:
        points: By optimizer: bytes of state per parameter, mean of the metric and
            half-width of its interval.
        curves: By optimizer: steps and the metric there.
        label: Of the metric.
        paths: Files to write.
    """
    colors = dict(zip(points, cycle(COLORS), strict=False))
    with figure(paths, (9.6, 4.2), 2) as (drawing, (left, right)):
        for optimizer, (num_bytes, mean, half_width) in points.items():
            color = colors[optimizer]
            left.errorbar(num_bytes, mean, half_width, fmt="o", ms=5, color=color)
        left.set(xlabel="bytes of state per parameter", ylabel=label)
        low, high = left.get_xlim()
        left.set_xlim(min(low, 0.0), high + 0.45 * (high - min(low, 0.0)))
        for optimizer, curve in curves.items():
            right.plot(*zip(*curve, strict=True), color=colors[optimizer])
        right.set(xlabel="steps", ylabel=label)
        low, high = right.get_xlim()
        right.set_xlim(low, high + 0.35 * (high - low))
        drawing.draw_without_rendering()
        places = [(x, y, name, colors[name]) for name, (x, y, _) in points.items()]
        label_ends(left, places)
        ends = [(*curve[-1], name, colors[name]) for name, curve in curves.items()]
        label_ends(right, ends)
