"""Exponents: straight lines through logarithms, with intervals."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Sequence

from saiopt.lab.comparison.intervals import Estimate, estimate, student_quantile


@dataclasses.dataclass(frozen=True)
class Exponent:
    """The exponent k of y = c·xᵏ.

    Args:
        value: k.
        half_width: Half the width of the 95 % interval; None where there are no
            degrees of freedom.
        count: Number of points.
        intercept: log c.
    """

    value: float
    half_width: float | None
    count: int
    intercept: float

    def __str__(self) -> str:
        """Return such as ``0.91 ± 0.02``."""
        spread = "" if self.half_width is None else f" ± {self.half_width:.2f}"
        return f"{self.value:.2f}{spread}"


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> Exponent:
    """Fit log y = log c + k·log x by least squares.

    The interval is Student's, k ± t(0.975, n-2)·s, from the scatter of independent
    points about the line. It says nothing about a bend of the true curve.

    Args:
        x: Positive numbers, at least two different ones.
        y: Positive numbers, one per x.

    Returns:
        The exponent.

    Raises:
        ValueError: If there are fewer than two different x, or a number is not
            positive.

    >>> fit_exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]).value
    2.0
    """
    if len(set(x)) < 2:
        raise ValueError(f"x must hold at least two different values, got {list(x)}")
    if min(*x, *y) <= 0:
        raise ValueError(f"x and y must be positive, got {min(*x, *y)}")
    log_x, log_y = [list(map(math.log, values)) for values in (x, y)]
    slope, intercept = statistics.linear_regression(log_x, log_y)
    freedom = len(x) - 2
    if freedom == 0:
        return Exponent(slope, None, len(x), intercept)
    centre = statistics.fmean(log_x)
    spread = math.fsum((value - centre) ** 2 for value in log_x)
    squares = math.fsum(
        (b - intercept - slope * a) ** 2 for a, b in zip(log_x, log_y, strict=True)
    )
    error = math.sqrt(squares / freedom / spread)
    half_width = student_quantile(freedom) * error
    return Exponent(slope, half_width, len(x), intercept)


def local_slopes(
    x: Sequence[float], y: Sequence[float]
) -> list[tuple[float, float, float]]:
    """Return the slopes between neighbouring x, from geometric means over points.

    Args:
        x: Positive numbers.
        y: Positive numbers, one per x.

    Returns:
        Lower x, upper x and slope of each pair of neighbours.

    >>> local_slopes([1.0, 2.0, 2.0], [1.0, 2.0, 2.0])
    [(1.0, 2.0, 1.0)]
    """
    groups: dict[float, list[float]] = {}
    for a, b in zip(x, y, strict=True):
        groups.setdefault(a, []).append(math.log(b))
    means = {a: statistics.fmean(groups[a]) for a in sorted(groups)}
    return [
        (low, high, (means[high] - means[low]) / math.log(high / low))
        for low, high in itertools.pairwise(means)
    ]


def jackknife(
    statistic: Callable[[Collection[int]], float | None], seeds: Sequence[int]
) -> Estimate | None:
    """Give an interval to what only all seeds together tell.

    Args:
        statistic: Function of the seeds that are kept; None where they do not tell.
        seeds: All.

    Returns:
        The mean of the pseudo-values n·s - (n-1)·s₋ᵢ, as independent as the seeds are,
        with Student's 95 % interval; without one where no seed can be spared; None
        where all do not tell.

    References:
        Tukey (1958), "Bias and confidence in not quite large samples".

    >>> jackknife(lambda kept: sum(kept) / len(kept), [1, 2, 3]).mean
    2.0
    """
    n = len(seeds)
    whole = statistic(seeds)
    if whole is None:
        return None
    kept = ([s for s in seeds if s != left] for left in seeds) if n > 1 else ()
    values = [n * whole - (n - 1) * w for k in kept if (w := statistic(k)) is not None]
    return estimate(values) if 0 < len(values) == n else Estimate(whole, None, n)
