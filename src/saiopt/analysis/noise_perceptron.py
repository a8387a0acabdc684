"""Picture of the perceptron's norm, time and local slopes against P."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saiopt.analysis.figure import COLORS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class SizeCurve:
    """What was measured at one χ.

    Args:
        points: P and value of every seed.
        slopes: Lower P, upper P and slope between neighbouring P.
        theory: The slope in the limit.
    """

    points: Sequence[tuple[float, float]]
    slopes: Sequence[tuple[float, float, float]]
    theory: float


def plot_perceptron(
    curves: Mapping[str, Mapping[float, SizeCurve]], title: str, paths: Sequence[Path]
) -> None:
    """Draw a panel per quantity, and one with the local slopes of all.

    Args:
        curves: Axis label of the quantity, then χ.
        title: Heading.
        paths: Files to write.
    """
    with figure(paths, (11.5, 4.2), len(curves) + 1) as (drawing, all_axes):
        for axes, (label, by_chi) in zip(all_axes, curves.items(), strict=False):
            for color, (chi, curve) in zip(COLORS, by_chi.items(), strict=False):
                _draw_curve(axes, curve, f"χ = {chi:g}", color)
            axes.set(xscale="log", yscale="log", xlabel="P", title=label)
        for style, by_chi in zip(("o-", "s--"), curves.values(), strict=False):
            for color, curve in zip(COLORS, by_chi.values(), strict=False):
                _draw_slopes(all_axes[-1], curve, style, color)
        all_axes[-1].set(
            xscale="log",
            xlabel="P",
            title="slope between neighbours over theory",
            ylim=(0, None),
        )
        all_axes[-1].axhline(1, color="#333333", lw=0.8, ls=":")
        handles, labels = all_axes[0].get_legend_handles_labels()
        for style, label in zip(("o-", "s--"), curves, strict=False):
            (line,) = all_axes[-1].plot([], [], style, ms=4, color="#666666")
            handles.append(line)
            labels.append(f"slope of {label}")
        (line,) = all_axes[0].plot([], [], ":", color="#666666")
        drawing.legend(
            [*handles, line],
            [*labels, "theory's slope"],
            loc="outside lower center",
            ncols=7,
            frameon=False,
        )
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)


def _draw_curve(axes: "Axes", curve: SizeCurve, label: str, color: str) -> None:
    if not curve.points:
        return
    by_size: dict[float, list[float]] = {}
    for size, value in curve.points:
        by_size.setdefault(size, []).append(value)
    sizes = sorted(by_size)
    means = [statistics.geometric_mean(by_size[size]) for size in sizes]
    axes.plot(*zip(*curve.points, strict=True), ".", ms=3, color=color, alpha=0.35)
    axes.plot(sizes, means, "o-", ms=4, color=color, label=label)
    # Through the last point: the law is the limit of many points.
    line = [means[-1] * (size / sizes[-1]) ** curve.theory for size in sizes]
    axes.plot(sizes, line, ":", color=color, lw=1.2)


def _draw_slopes(axes: "Axes", curve: SizeCurve, style: str, color: str) -> None:
    places = [(low * high) ** 0.5 for low, high, _ in curve.slopes]
    slopes = [slope / curve.theory for *_, slope in curve.slopes]
    axes.plot(places, slopes, style, ms=4, lw=1.2, color=color)


def plot_agreement(
    samples: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw the distribution function of each sample, a panel per quantity.

    Args:
        samples: Axis label of the quantity, then name of the simulation.
        title: Heading.
        paths: Files to write.
    """
    with figure(paths, (4.6 * len(samples), 4.0), len(samples)) as (drawing, all_axes):
        for axes, (label, by_name) in zip(all_axes, samples.items(), strict=True):
            styles = zip(COLORS, ("-", "--"), by_name.items(), strict=False)
            for color, style, (name, values) in styles:
                axes.ecdf(values, color=color, ls=style, lw=1.6, label=name)
            axes.set(xscale="log", xlabel=label)
        all_axes[0].set_ylabel("share of runs at or below")
        all_axes[0].legend(frameon=False)
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)
