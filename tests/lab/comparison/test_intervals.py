import math

import pytest

from saiopt.lab.comparison.intervals import estimate


def test_the_interval_is_students() -> None:
    # t(0.975, 4) = 2.776445 from the usual tables; s of 1..5 is √2.5.
    result = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (result.mean, result.count) == (3.0, 5)
    assert result.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5))


def test_one_value_has_no_interval() -> None:
    assert estimate([2.5]).half_width is None


def test_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="values must hold at least one"):
        estimate([])
