"""Heat maps over (α, T), and critical temperatures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saiopt.analysis.figure import COLORS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = {"diverged": r"$\times$", "unfitted": "…"}


@dataclasses.dataclass(frozen=True)
class PlaneCell:
    """The mean over seeds at one α and T.

    Args:
        values: By quantity; empty if no seed has any.
        mark: ``diverged``, ``unfitted`` or, if every seed was fitted, nothing.
    """

    values: Mapping[str, float]
    mark: str


def plot_plane(
    cells: Mapping[tuple[float, float], PlaneCell],
    quantities: Mapping[str, str],
    best: Sequence[tuple[float, float]],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw one heat map per quantity.

    Args:
        cells: By α and T.
        quantities: Title by name; all but ``test_error`` are drawn in logarithms.
        best: α and T_opt, drawn as circles on the first map.
        title: Heading.
        paths: Files to write.
    """
    alphas, temperatures = (sorted({key[i] for key in cells}) for i in range(2))
    with figure(paths, (4.1 * len(quantities), 4.1), len(quantities)) as (
        drawing,
        all_axes,
    ):
        for axes, (name, label) in zip(all_axes, quantities.items(), strict=True):
            image = _draw_map(axes, cells, alphas, temperatures, name)
            drawing.colorbar(image, ax=axes, shrink=0.85)
            axes.set(title=label, xlabel=r"$\alpha$")
        for alpha, temperature in best:
            place = (alphas.index(alpha), temperatures.index(temperature))
            all_axes[0].plot(*place, "o", ms=9, mfc="none", mec="white", mew=1.8)
        all_axes[0].set_ylabel("T = lr / batch size")
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)


def _draw_map(
    axes: "Axes",
    cells: Mapping[tuple[float, float], PlaneCell],
    alphas: Sequence[float],
    temperatures: Sequence[float],
    name: str,
) -> Any:  # noqa: ANN401 - matplotlib's image
    from matplotlib.colors import LogNorm, Normalize

    grid = [
        [cells[a, t].values.get(name, math.nan) for a in alphas] for t in temperatures
    ]
    finite = [value for row in grid for value in row if value == value and value > 0]
    low, high = min(finite, default=0.5), max(finite, default=1.0)
    norm = Normalize(low, high) if name == "test_error" else LogNorm(low, high)
    axes.set_facecolor("#EEEEEE")
    axes.grid(visible=False)
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis", norm=norm)
    for (alpha, temperature), cell in cells.items():
        if cell.mark:
            place = (alphas.index(alpha), temperatures.index(temperature))
            axes.annotate(
                _MARKS[cell.mark], place, ha="center", va="center", color="#666666"
            )
    axes.set_xticks(range(len(alphas)), [power_of_two(a) for a in alphas])
    axes.set_yticks(range(len(temperatures)), [power_of_two(t) for t in temperatures])
    return image


def power_of_two(value: float) -> str:
    """Write a power of two as such and another number as it is.

    >>> power_of_two(0.25), power_of_two(1.0), power_of_two(0.3)
    ('$2^{-2}$', '1', '0.3')
    """
    mantissa, exponent = math.frexp(value)
    if mantissa != 0.5 or exponent == 1:
        return f"{value:g}"
    return f"$2^{{{exponent - 1}}}$"


def plot_weight_change(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    critical: Mapping[str, Sequence[float]],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw the relative weight change against T, with every seed's T_c as a tick.

    Args:
        curves: T and geometric mean over seeds, by name.
        critical: T_c of every seed that has one, by the same names.
        title: Heading.
        paths: Files to write.
    """
    with figure(paths, (7.2, 4.4)) as (_, (axes,)):
        for color, (name, points) in zip(COLORS, curves.items(), strict=False):
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), "o-", ms=4, color=color, label=name)
            for temperature in critical.get(name, ()):
                axes.axvline(temperature, ymax=0.06, color=color, lw=1.5)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="T = lr / batch size; ticks: $T_c$ of each seed",
            ylabel="relative weight change",
            title=title,
        )
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)


def plot_kernel_regime(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    deciding: tuple[float, float],
    levels: Sequence[float],
    leaves: Mapping[str, float],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw weight change, training time and test error against T, one curve per P.

    Args:
        curves: T and mean over seeds, by quantity (``weight_change``, ``time``,
            ``test_error``) and then by name.
        deciding: The temperatures between which exponents are fitted.
        levels: Weight changes at which T_c is taken.
        leaves: T at which the test error leaves its plateau, by name.
        title: Heading.
        paths: Files to write.
    """
    labels = {
        "weight_change": "relative weight change",
        "time": "training time t*",
        "test_error": r"test error; ticks: where it leaves its plateau",
    }
    with figure(paths, (13.0, 4.3), len(labels)) as (drawing, all_axes):
        for axes, (quantity, label) in zip(all_axes, labels.items(), strict=True):
            for color, (name, points) in zip(
                COLORS, curves[quantity].items(), strict=False
            ):
                if points:
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, "o-", ms=4, color=color, label=name)
            axes.axvspan(*deciding, color="#F2F2F2", zorder=0)
            scale = "linear" if quantity == "test_error" else "log"
            axes.set(xscale="log", yscale=scale, xlabel="T = lr / batch size")
            axes.set_title(label, fontsize=10)
        for level in levels:
            all_axes[0].axhline(level, color="#999999", lw=0.8, ls=":")
        for color, name in zip(COLORS, curves["test_error"], strict=False):
            if name in leaves:
                all_axes[2].axvline(leaves[name], ymax=0.06, color=color, lw=1.8)
        all_axes[1].legend(frameon=False)
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)


@dataclasses.dataclass(frozen=True)
class TemperatureCurve:
    """A temperature against α.

    Args:
        points: α, T and the factor by which its interval reaches up and down.
        theory: The slope in logarithms.
    """

    points: Sequence[tuple[float, float, float]]
    theory: float


def plot_temperatures(
    curves: Mapping[str, Mapping[str, TemperatureCurve]],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw temperatures against α, a panel each, with theory's slopes.

    Args:
        curves: By axis label of the temperature, then by name.
        title: Heading.
        paths: Files to write.
    """
    with figure(paths, (5.6 * len(curves), 4.4), len(curves)) as (drawing, all_axes):
        for axes, (label, by_name) in zip(all_axes, curves.items(), strict=True):
            for place, (name, curve) in enumerate(by_name.items()):
                color = COLORS[place % len(COLORS)]
                alphas, values, factors = zip(*curve.points, strict=True)
                # Bars of curves at the same α would hide each other.
                shifted = [alpha * 2 ** (0.1 * place) for alpha in alphas]
                bars = [
                    [t - t / f for t, f in zip(values, factors, strict=True)],
                    [t * f - t for t, f in zip(values, factors, strict=True)],
                ]
                axes.errorbar(
                    shifted, values, bars, fmt="o", ms=4, color=color, label=name
                )
                centre = [
                    math.exp(math.fsum(map(math.log, v)) / len(v))
                    for v in (shifted, values)
                ]
                line = [centre[1] * (a / centre[0]) ** curve.theory for a in shifted]
                axes.plot(shifted, line, ":", color=color, lw=1.4)
            axes.set(xlabel=r"$\alpha$", ylabel=label)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
        all_axes[0].legend(frameon=False)
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)


def plot_effects(
    effects: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw by how much noise changes the test error against α, a panel per data set.

    Args:
        effects: α, change of the test error and half its interval, by panel's title and
            then by name.
        title: Heading.
        paths: Files to write.
    """
    with figure(paths, (5.6 * len(effects), 4.2), len(effects)) as (drawing, all_axes):
        for axes, (label, by_name) in zip(all_axes, effects.items(), strict=True):
            for place, (name, points) in enumerate(by_name.items()):
                color = COLORS[place % len(COLORS)]
                alphas, changes, half_widths = zip(*points, strict=True)
                axes.errorbar(
                    [alpha * 2 ** (0.3 * place) for alpha in alphas],
                    changes,
                    half_widths,
                    fmt="o-",
                    ms=4,
                    color=color,
                    label=name,
                )
            axes.axhline(0, color="#333333", lw=0.8)
            axes.set(xlabel=r"$\alpha$", title=label)
            axes.set_xscale("log", base=2)
        all_axes[0].set_ylabel("change of the test error")
        all_axes[0].legend(frameon=False, loc="upper left")
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11)
