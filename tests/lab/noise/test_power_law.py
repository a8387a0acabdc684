import math
import statistics
from collections.abc import Collection

import numpy as np
import pytest
from scipy.stats import linregress, t

from saiopt.lab.comparison.intervals import Estimate, estimate
from saiopt.lab.noise.power_law import fit_exponent, jackknife, local_slopes


def test_the_interval_is_that_of_linear_regression() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat([1.0, 2.0, 4.0, 8.0], 3)
    y = 5 * x**1.5 * np.exp(0.3 * rng.standard_normal(12))
    result = fit_exponent(x.tolist(), y.tolist())
    oracle = linregress(np.log(x), np.log(y))
    assert result.value == pytest.approx(oracle.slope)
    assert result.intercept == pytest.approx(oracle.intercept)
    assert result.half_width == pytest.approx(oracle.stderr * t.ppf(0.975, 10))


def test_two_points_have_a_slope_and_no_interval() -> None:
    result = fit_exponent([1.0, math.e], [1.0, math.e**2])
    assert result.value == pytest.approx(2)
    assert result.half_width is None


def test_local_slopes_are_between_geometric_means() -> None:
    ((low, high, slope),) = local_slopes([1.0, 1.0, 4.0], [2.0, 8.0, 64.0])
    assert (low, high, slope) == (1.0, 4.0, pytest.approx(2.0))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 1.0], [1.0, 2.0], "x must hold at least two different values"),
        ([1.0, 2.0], [0.0, 2.0], "x and y must be positive, got 0"),
    ],
)
def test_points_without_a_slope_are_refused(
    x: list[float], y: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_exponent(x, y)


def test_the_jackknife_of_a_mean_is_its_interval() -> None:
    values = {3: 1.0, 5: 2.0, 8: 6.0}

    def mean(kept: Collection[int]) -> float:
        return sum(values[seed] for seed in kept) / len(kept)

    found = jackknife(mean, list(values))
    usual = estimate(list(values.values()))
    assert found is not None
    assert found.mean == pytest.approx(usual.mean)
    assert found.half_width == pytest.approx(usual.half_width)
    # Of a square it takes off the first order of the bias, the mean's variance.
    squared = jackknife(lambda kept: mean(kept) ** 2, list(values))
    assert squared is not None
    variance = statistics.variance(values.values()) / 3
    assert squared.mean == pytest.approx(3.0**2 - variance)


def test_the_jackknife_has_no_interval_where_a_seed_is_needed() -> None:
    assert jackknife(lambda kept: None, [0, 1]) is None
    assert jackknife(lambda kept: float(len(kept)), [0]) == Estimate(1.0, None, 1)
    needed = jackknife(lambda kept: 2.0 if 1 in kept else None, [0, 1, 2])
    assert needed == Estimate(2.0, None, 3)
