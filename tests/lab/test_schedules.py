import math

import pytest

from saiopt.lab.schedules import lr_factor


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule: str) -> None:
    factors = [lr_factor(schedule, step, 100, 4) for step in range(5)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "halfway", "last"),
    [
        ("constant", 1.0, 1.0),
        ("linear", 0.5, 0.01),
        ("cosine", 0.5, (1 - math.cos(math.pi / 100)) / 2),
    ],
)
def test_the_decay_has_its_closed_form(
    schedule: str, halfway: float, last: float
) -> None:
    assert lr_factor(schedule, 60, 110, 10) == pytest.approx(halfway)
    assert lr_factor(schedule, 109, 110, 10) == pytest.approx(last)


def test_no_step_has_a_learning_rate_of_zero() -> None:
    for schedule in ("constant", "linear", "cosine"):
        for warmup in (0, 3):
            factors = [lr_factor(schedule, step, 9, warmup) for step in range(9)]
            assert all(0 < factor <= 1 for factor in factors)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule must be .*, got sine"):
        lr_factor("sine", 1, 2, 0)


def test_the_published_schedule_falls_to_a_tenth_at_40_and_80_percent() -> None:
    factors = [lr_factor("step", step, 200, 0) for step in (0, 79, 80, 159, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
