"""Mean over seeds with its confidence interval."""

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over independent runs.

    Args:
        mean: Of the values.
        half_width: Half the width of the 95 % interval; None for a single value.
        count: Number of values, n.
    """

    mean: float
    half_width: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean ± t(0.975, n-1) · s/√n, with the unbiased standard deviation s.

    Args:
        values: At least one number.

    Returns:
        The mean with its 95 % Student interval.

    Raises:
        ValueError: If there are no values.

    >>> round(estimate([1.0, 2.0, 3.0]).half_width, 3)
    2.484
    """
    if not values:
        raise ValueError("values must hold at least one number, got none")
    count = len(values)
    mean = statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, 1)
    from scipy.special import stdtrit

    quantile = float(stdtrit(count - 1, 0.975))
    half_width = quantile * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, half_width, count)
