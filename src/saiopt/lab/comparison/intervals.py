"""Mean over seeds with its confidence interval."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence


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

    def __str__(self) -> str:
        """Return such as ``2.1034 ± 0.0121 (n=3)``."""
        spread = "" if self.half_width is None else f" ± {self.half_width:.4f}"
        return f"{self.mean:.4f}{spread} (n={self.count})"


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
    half_width = (
        student_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    )
    return Estimate(mean, half_width, count)


def student_quantile(freedom: int) -> float:
    """Return t(0.975, freedom), by which a standard error is half a 95 % interval.

    Args:
        freedom: Degrees of freedom, at least 1.

    Returns:
        The quantile.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def result_text(metric: Estimate | None, diverged: Iterable[object]) -> str:
    """Write a mean with its interval, and what diverged.

    Args:
        metric: Of the runs that have ended.
        diverged: Seeds of the others.

    Returns:
        Such as ``2.1034 ± 0.0121 (n=3), diverged (seed 0)``.
    """
    seeds = ", ".join(map(str, diverged))
    parts = [str(metric)] if metric is not None else []
    return ", ".join([*parts, f"diverged (seed {seeds})"] if seeds else parts)
