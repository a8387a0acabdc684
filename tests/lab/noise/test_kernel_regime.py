import math

import pytest

from saiopt.lab.noise.critical import crossing
from saiopt.lab.noise.kernel_regime import kernel_regime

DELTA, GAMMA, B = 0.9, 0.4, 1.3
TEMPERATURES = [2.0**k for k in range(-13, -1, 2)]
SIZES = [256, 512, 1024]


def made(seed: int, temperature: float, size: int, **changed: object) -> dict:
    """Return a network that follows the laws, with a factor of its seed."""
    own = 1 + 0.1 * seed
    leaves_at = 0.5 * size**-0.5
    return {
        "optimizer": "sgd",
        "alpha": 32768.0,
        "seed": seed,
        "temperature": temperature,
        "size": size,
        "status": "fitted",
        "weight_change": own * 0.3 * temperature**DELTA * size**GAMMA,
        "time": own * temperature * size**B,
        "test_error": 0.2 if temperature <= leaves_at else 0.1,
        **changed,
    }


ROWS = [made(s, t, p) for s in range(5) for t in TEMPERATURES for p in SIZES]


def test_exponents_are_those_of_the_laws() -> None:
    found = kernel_regime(ROWS)
    assert found is not None
    assert found.delta.mean == pytest.approx(DELTA)
    assert found.gamma.mean == pytest.approx(GAMMA)
    assert found.time_in_temperature.mean == pytest.approx(1)
    assert found.b.mean == pytest.approx(B)
    assert found.ratio.mean == pytest.approx(GAMMA / DELTA)
    assert found.delta.count == 5
    assert found.delta.half_width == pytest.approx(0, abs=1e-9)
    assert found.levels
    for level in found.levels.values():
        assert level.mean == pytest.approx(GAMMA / DELTA)


def test_only_temperatures_at_which_noise_decides_count() -> None:
    floor = [
        {**row, "weight_change": max(row["weight_change"], 0.006)}
        if row["size"] == 1024
        else row
        for row in ROWS
    ]
    found = kernel_regime(floor)
    assert found is not None
    # Those on the floor do not follow T, and nor does the rise to the next one.
    assert found.temperatures
    for t in found.temperatures:
        assert 0.3 * t**DELTA * 1024**GAMMA > 0.006
    assert found.delta.mean == pytest.approx(DELTA)
    largest = max(
        r["weight_change"] for r in ROWS if r["temperature"] == max(TEMPERATURES)
    )
    assert largest > 0.1
    assert max(TEMPERATURES) not in found.temperatures


def test_the_plateau_is_left_where_the_error_falls_for_good() -> None:
    found = kernel_regime(ROWS)
    assert found is not None
    assert found.plateau is not None
    # Between the last T on the plateau and the next one.
    for size, t in found.plateau_temperatures.items():
        last = max(t for t in TEMPERATURES if t <= 0.5 * size**-0.5)
        assert last < t < 4 * last
    assert found.plateau.mean == pytest.approx(
        -math.log(found.plateau_temperatures[1024] / found.plateau_temperatures[256])
        / math.log(4),
        abs=0.2,
    )
    # An error that comes back has not left.
    back = [
        {**row, "test_error": 0.2} if row["temperature"] == max(TEMPERATURES) else row
        for row in ROWS
    ]
    again = kernel_regime(back)
    assert again is not None
    assert again.plateau is None
    assert again.plateau_temperatures == {}


def test_networks_that_were_not_fitted_end_the_grid() -> None:
    rows = [
        {**row, "status": "diverged", "weight_change": None, "test_error": None}
        if row["temperature"] >= 2.0**-7 and row["seed"] == 0
        else row
        for row in ROWS
    ]
    found = kernel_regime(rows)
    assert found is not None
    assert max(found.temperatures) < 2.0**-7


@pytest.mark.parametrize("name", ["size", "temperature"])
def test_one_value_gives_no_exponent(name: str) -> None:
    assert kernel_regime([row for row in ROWS if row[name] == ROWS[0][name]]) is None


def test_a_level_is_crossed_between_logarithms() -> None:
    curve = [(math.log(t), math.log(y)) for t, y in ((1.0, 1.0), (4.0, 16.0))]
    assert crossing(curve, math.log(4.0)) == pytest.approx(2.0)
    assert crossing(curve, math.log(20.0)) is None
    assert crossing(curve, math.log(1.0)) is None
