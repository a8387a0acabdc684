"""What noise does in the kernel regime: exponents of weight change, time and T_c.

In the kernel regime, α ≫ 1, the weights hardly move, and where noise decides how far,
their relative change is ~ T^δ P^γ and the training time t* ~ T P^b. They leave it at a
critical temperature T_c ~ P^-a, where the change reaches a size that does not depend on
P, so that a = γ/δ, and where the test error leaves its plateau.

References:
    Sclocchi, Geiger and Wyart (2023), "Dissecting the Effects of SGD Noise in Distinct
    Regimes of Deep Learning", arXiv 2301.13703.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Sequence

import numpy as np

from saiopt.lab.comparison.intervals import Estimate, estimate
from saiopt.lab.noise.critical import crossing
from saiopt.lab.noise.power_law import jackknife
from saiopt.lab.studies.ledger import Row

# Noise decides where the change follows T at least so steeply, and the weights are in
# the kernel regime up to this change.
_LEAST_SLOPE, _LARGEST_CHANGE = 0.5, 0.1
LEVELS = (0.01, 0.02, 0.05)
# The plateau is the mean over the smallest temperatures; the error has left it where it
# stays below this share.
_PLATEAU, _LEFT = 3, 0.9
Curve = dict[float, float]


@dataclasses.dataclass(frozen=True)
class KernelRegime:
    """Exponents at one α, each a mean over seeds with its 95 % interval.

    Args:
        alpha: α.
        temperatures: Those at which noise decides, for every P.
        delta: δ of the relative weight change ~ T^δ P^γ.
        gamma: γ.
        time_in_temperature: Exponent of T in t*; theory has 1.
        b: b of t* ~ T P^b.
        ratio: a = γ/δ.
        levels: a of T_c ~ P^-a by the weight change at which T_c is taken.
        plateau: a from where the test error leaves its plateau; its interval is the
            jackknife's over seeds. None where a size has no such T.
        plateau_temperatures: That T_c by P, of the mean over seeds.
    """

    alpha: float
    temperatures: list[float]
    delta: Estimate
    gamma: Estimate
    time_in_temperature: Estimate
    b: Estimate
    ratio: Estimate
    levels: dict[float, Estimate]
    plateau: Estimate | None
    plateau_temperatures: dict[int, float]


def kernel_regime(rows: Sequence[Row]) -> KernelRegime | None:
    """Fit all exponents, seed by seed.

    The temperatures at which noise decides are those at which, for every P, all seeds
    are fitted, the geometric mean of their changes is at most 0.1, and its logarithm
    rises by half the logarithm of T or more towards both neighbours of T.

    Args:
        rows: Of one optimizer and one α, over T, P and seeds.

    Returns:
        The exponents; None of fewer than two such temperatures, or of one P.
    """
    sizes = sorted({row["size"] for row in rows})
    chosen = [
        t
        for t in sorted({row["temperature"] for row in rows})
        if all(t in _deciding(_change_curve(rows, size)) for size in sizes)
    ]
    if len(chosen) < 2 or len(sizes) < 2:
        return None
    seeds = sorted({row["seed"] for row in rows})
    deciding = [row for row in rows if row["temperature"] in chosen]
    by_seed = [[row for row in deciding if row["seed"] == seed] for seed in seeds]
    changes = [_plane_fit(mine, "weight_change") for mine in by_seed]
    times = [_plane_fit(mine, "time") for mine in by_seed]
    return KernelRegime(
        rows[0]["alpha"],
        chosen,
        estimate([delta for delta, _ in changes]),
        estimate([gamma for _, gamma in changes]),
        estimate([exponent for exponent, _ in times]),
        estimate([b for _, b in times]),
        estimate([gamma / delta for delta, gamma in changes]),
        _levels(rows, seeds),
        _plateau(rows, seeds),
        _plateau_temperatures(rows, seeds),
    )


def mean_curve(
    rows: Sequence[Row], size: int, name: str, mean: Callable[[list[float]], float]
) -> Curve:
    """Average a quantity over seeds at each T, up to the first that is not fitted.

    Args:
        rows: Of one α.
        size: P.
        name: Of the quantity.
        mean: Arithmetic or geometric.

    Returns:
        The mean by T, ascending.
    """
    by_temperature: dict[float, list[Row]] = {}
    for row in rows:
        if row["size"] == size:
            by_temperature.setdefault(row["temperature"], []).append(row)
    ascending = sorted(by_temperature.items())
    fitted = itertools.takewhile(
        lambda item: all(row["status"] == "fitted" for row in item[1]), ascending
    )
    return {t: mean([row[name] for row in mine]) for t, mine in fitted}


def _change_curve(rows: Sequence[Row], size: int) -> Curve:
    return mean_curve(rows, size, "weight_change", statistics.geometric_mean)


def _logarithms(curve: Curve) -> list[tuple[float, float]]:
    return [(math.log(t), math.log(y)) for t, y in curve.items()]


def _deciding(curve: Curve) -> Collection[float]:
    slopes = {
        (t0, t1): math.log(y1 / y0) / math.log(t1 / t0)
        for (t0, y0), (t1, y1) in itertools.pairwise(curve.items())
    }
    return {
        t
        for t, change in curve.items()
        if change <= _LARGEST_CHANGE
        and any(t in pair for pair in slopes)
        and all(s >= _LEAST_SLOPE for pair, s in slopes.items() if t in pair)
    }


def _plane_fit(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Return the exponents of T and P by least squares of logarithms."""
    x = [[1.0, math.log(r["temperature"]), math.log(r["size"])] for r in rows]
    y = [math.log(r[name]) for r in rows]
    _, in_temperature, in_size = np.linalg.lstsq(np.array(x), np.array(y))[0]
    return float(in_temperature), float(in_size)


def _slope(points: dict[int, float]) -> float:
    """Return a of T_c ~ P^-a."""
    x, y = (list(map(math.log, values)) for values in zip(*points.items(), strict=True))
    return -statistics.linear_regression(x, y).slope


def _levels(rows: Sequence[Row], seeds: Sequence[int]) -> dict[float, Estimate]:
    """Fit T_c of fixed levels, seed by seed, where each P reaches the level."""
    found = {}
    sizes = sorted({row["size"] for row in rows})
    for level in LEVELS:
        slopes = []
        for seed in seeds:
            mine = [row for row in rows if row["seed"] == seed]
            curves = {s: _logarithms(_change_curve(mine, s)) for s in sizes}
            points = {s: crossing(c, math.log(level)) for s, c in curves.items()}
            reached = {s: t for s, t in points.items() if t is not None}
            if len(reached) == len(sizes):
                slopes.append(_slope(reached))
        if slopes:
            found[level] = estimate(slopes)
    return found


def _plateau_temperatures(
    rows: Sequence[Row], seeds: Collection[int]
) -> dict[int, float]:
    """Return where the mean test error leaves its plateau for good, by P."""
    mine = [row for row in rows if row["seed"] in seeds]
    found = {}
    for size in sorted({row["size"] for row in mine}):
        left = _leaving(mean_curve(mine, size, "test_error", statistics.fmean))
        if left is not None:
            found[size] = left
    return found


def _leaving(curve: Curve) -> float | None:
    """Return where an error leaves its plateau for good, interpolated in log T."""
    if not curve:
        return None
    level = _LEFT * statistics.fmean(list(curve.values())[:_PLATEAU])
    falls = [
        (t0, t1)
        for t0, t1 in itertools.pairwise(curve)
        if curve[t1] < level <= curve[t0]
    ]
    if not falls or curve[max(curve)] >= level:
        return None
    t0, t1 = falls[-1]
    share = (curve[t0] - level) / (curve[t0] - curve[t1])
    return t0 * (t1 / t0) ** share


def _plateau(rows: Sequence[Row], seeds: Sequence[int]) -> Estimate | None:
    """Fit T_c of the test error; single seeds are too noisy for one each."""
    num_sizes = len({row["size"] for row in rows})

    def slope(kept: Collection[int]) -> float | None:
        points = _plateau_temperatures(rows, kept)
        return _slope(points) if len(points) == num_sizes else None

    return jackknife(slope, seeds)
