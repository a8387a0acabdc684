"""Best and critical temperatures, and their exponents."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from saiopt.lab.noise.power_law import Exponent, fit_exponent
from saiopt.lab.studies.ledger import Row

_RISE = 2.0


@dataclasses.dataclass(frozen=True)
class Best:
    """The temperature that generalises best at one α.

    Args:
        alpha: α.
        temperature: T_opt, the best of the grid.
        test_error: Mean over seeds at T_opt.
        at_border: Whether T_opt is the lowest or the highest T at which all seeds were
            fitted, so that the true one may lie beyond.
    """

    alpha: float
    temperature: float
    test_error: float
    at_border: bool


@dataclasses.dataclass(frozen=True)
class Crossover:
    """Where noise begins to decide how far the weights go.

    Args:
        optimizer: Name.
        size: P.
        alpha: α.
        seed: Of the networks.
        temperature: T_c; None if the grid does not contain it.
    """

    optimizer: str
    size: int
    alpha: float
    seed: int
    temperature: float | None


def best_temperatures(rows: Sequence[Row]) -> list[Best]:
    """Find T_opt(α), the T of the smallest mean test error.

    Args:
        rows: Of one optimizer and one P; only temperatures at which every seed was
            fitted count.

    Returns:
        One per α that has any.
    """
    result = []
    for alpha in sorted({row["alpha"] for row in rows}):
        errors: dict[float, list[float]] = {}
        lost = set()
        for row in (row for row in rows if row["alpha"] == alpha):
            if row["status"] == "fitted":
                errors.setdefault(row["temperature"], []).append(row["test_error"])
            else:
                lost.add(row["temperature"])
        means = {t: statistics.fmean(errors[t]) for t in errors.keys() - lost}
        if means:
            best = min(sorted(means), key=means.__getitem__)
            is_border = best in {min(means), max(means)}
            result.append(Best(alpha, best, means[best], is_border))
    return result


def fit_best(bests: Sequence[Best]) -> Exponent | None:
    """Fit T_opt ~ α^k over α < 1.

    Args:
        bests: From :func:`best_temperatures`; those at a border are left out.

    Returns:
        The exponent, None of fewer than two points.
    """
    inside = [best for best in bests if best.alpha < 1 and not best.at_border]
    if len(inside) < 2:
        return None
    return fit_exponent(
        [best.alpha for best in inside], [best.temperature for best in inside]
    )


def crossovers(rows: Sequence[Row], level: float | None = None) -> list[Crossover]:
    """Find T_c of every optimizer, P, α and seed.

    T_c is where the relative weight change rises through a level, by linear
    interpolation of log change against log T. Cells that were not fitted end the grid.

    Args:
        rows: Any.
        level: One for all curves; None for twice a curve's change at its smallest T.

    Returns:
        One per curve over T.
    """
    curves: dict[tuple[str, int, float, int], list[Row]] = {}
    for row in rows:
        key = (row["optimizer"], row["size"], row["alpha"], row["seed"])
        curves.setdefault(key, []).append(row)
    return [Crossover(*key, _crossover(curves[key], level)) for key in sorted(curves)]


def _crossover(rows: Sequence[Row], level: float | None) -> float | None:
    points: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row["temperature"]):
        if row["status"] != "fitted":
            break
        points.append((math.log(row["temperature"]), math.log(row["weight_change"])))
    if not points:
        return None
    asked = points[0][1] + math.log(_RISE) if level is None else math.log(level)
    return crossing(points, asked)


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return where a curve first rises through a level.

    Args:
        points: log T and log y, ascending in T.
        level: log y of the level.

    Returns:
        T by linear interpolation, None where it does not.
    """
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 < level <= y1:
            return math.exp(x0 + (x1 - x0) * (level - y0) / (y1 - y0))
    return None


def fit_critical(found: Sequence[Crossover]) -> Exponent | None:
    """Fit T_c ~ P^-a over all seeds.

    Args:
        found: Of one optimizer and one α; those without a T_c are left out.

    Returns:
        The exponent -a, None of fewer than two sizes.
    """
    inside = [(float(c.size), c.temperature) for c in found if c.temperature]
    if len({size for size, _ in inside}) < 2:
        return None
    return fit_exponent(*map(list, zip(*inside, strict=True)))
