from typing import Any

import pytest

from saiopt.lab.noise.critical import (
    best_temperatures,
    crossovers,
    fit_best,
    fit_critical,
)

TEMPERATURES = [2.0**power for power in range(-8, 1)]


def row(temperature: float, change: float = 1.0, **fields: Any) -> dict[str, Any]:
    return {
        "optimizer": "sgd",
        "size": 64,
        "alpha": 1.0,
        "seed": 0,
        "temperature": temperature,
        "status": "fitted",
        "weight_change": change,
        "test_error": 0.1,
        **fields,
    }


def test_t_c_is_where_the_weight_change_has_doubled() -> None:
    # Flat at 0.3 up to T = 1/16, then proportional to T: doubled at T = 1/8.
    rows = [row(t, 0.3 * max(1, 16 * t)) for t in reversed(TEMPERATURES)]
    (found,) = crossovers(rows)
    assert found.temperature == pytest.approx(1 / 8)


def test_t_c_between_temperatures_is_interpolated_in_logarithms() -> None:
    (found,) = crossovers([row(0.01, 1.0), row(0.1, 1.0), row(1.0, 100.0)])
    assert found.temperature == pytest.approx(0.1 * 10 ** (0.30103 / 2), rel=1e-5)


def test_a_crossover_beyond_the_fitted_cells_is_none() -> None:
    flat = [row(t, 0.3) for t in TEMPERATURES]
    assert crossovers(flat)[0].temperature is None
    rows = [row(0.01), row(0.1, 1.5), row(0.2, status="diverged", weight_change=None)]
    assert crossovers([*rows, row(0.3, 9.0)])[0].temperature is None


def test_the_exponent_of_t_c_is_found_over_seeds() -> None:
    rows = [
        row(t, max(1.0, t * size**0.7 * (1 + seed / 10)), size=size, seed=seed)
        for size in (64, 128, 256)
        for seed in range(3)
        for t in TEMPERATURES
    ]
    found = crossovers(rows)
    assert len(found) == 9
    exponent = fit_critical(found)
    assert exponent is not None
    assert exponent.value == pytest.approx(-0.7, abs=1e-6)
    assert exponent.count == 9


def test_the_best_temperature_is_that_of_the_smallest_mean_error() -> None:
    errors = {0.01: (0.3, 0.3), 0.1: (0.0, 0.5), 1.0: (0.2, 0.2), 10.0: (0.4, 0.4)}
    rows = [
        row(t, test_error=error, seed=seed)
        for t, pair in errors.items()
        for seed, error in enumerate(pair)
    ]
    (best,) = best_temperatures(rows)
    assert (best.temperature, best.at_border) == (1.0, False)
    assert best.test_error == pytest.approx(0.2)


def test_a_temperature_that_lost_a_seed_is_not_the_best() -> None:
    rows = [row(t, test_error=e) for t, e in ((0.1, 0.3), (0.2, 0.2), (0.4, 0.1))]
    lost = row(0.4, seed=1, status="diverged", test_error=None)
    (best,) = best_temperatures([*rows, lost])
    assert (best.temperature, best.at_border) == (0.2, True)


def test_t_opt_is_fitted_below_alpha_one_and_inside_the_border() -> None:
    grid = [10.0**power for power in range(-5, 3)]
    rows = [
        row(t, alpha=alpha, test_error=abs(t / alpha - 1) / (1 + t / alpha))
        for alpha in (0.001, 0.01, 0.1, 10.0)
        for t in grid
    ]
    exponent = fit_best(best_temperatures(rows))
    assert exponent is not None
    assert exponent.count == 3
    assert exponent.value == pytest.approx(1)
    assert fit_best(best_temperatures(rows)[:1]) is None
