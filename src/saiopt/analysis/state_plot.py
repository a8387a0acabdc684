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

    The limits are those of the ends: what is far from them, a long interval or the
    beginning of a run, is cut off.

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
        most = max(num_bytes for num_bytes, _, _ in points.values())
        left.set_xlim(0, 1.75 * most)
        left.set_ylim(_around([mean for _, mean, _ in points.values()], 0.15, 0.15))
        against = {"steps": curves, "seconds": timed}
        for axes, (unit, lines) in zip(others, against.items(), strict=False):
            for optimizer, curve in lines.items():
                axes.plot(*zip(*curve, strict=True), color=colors[optimizer])
            axes.set(xlabel=unit, ylabel=label)
            axes.set_xlim(0, 1.45 * max(curve[-1][0] for curve in lines.values()))
            ends = [curve[-1][1] for curve in lines.values()]
            comes_from_above = next(iter(lines.values()))[0][1] > min(ends)
            room = (0.15, 1.0) if comes_from_above else (1.0, 0.15)
            axes.set_ylim(_around(ends, *room))
        drawing.draw_without_rendering()
        places = [(x, y, name, colors[name]) for name, (x, y, _) in points.items()]
        label_ends(left, places, column=1.08 * most)
        for axes, lines in zip(others, against.values(), strict=False):
            last = [(*curve[-1], name, colors[name]) for name, curve in lines.items()]
            label_ends(axes, last)


def _around(values: Sequence[float], below: float, above: float) -> tuple[float, float]:
    """Return limits that leave room, in units of the values' range."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    return low - below * spread, high + above * spread
