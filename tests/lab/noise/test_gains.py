import pytest

from saiopt.lab.noise.gains import gains, ways_out


def made(
    alpha: float, temperature: float, seed: int, error: float, change: float
) -> dict:
    return {
        "alpha": alpha, "temperature": temperature, "seed": seed, "status": "fitted",
        "test_error": error, "weight_change": change,
    }  # fmt: skip


def test_a_gain_is_chosen_on_other_seeds_than_it_is_judged_on() -> None:
    # Each seed has its lowest error at a T of its own: chance alone, no gain.
    rows = [
        made(1.0, float(t), s, 0.1 if t in {0, s + 1} else 0.3, 0.5)
        for t in range(4)
        for s in range(3)
    ]
    (found,) = gains(rows)
    assert found.gain.mean <= 0
    # A T that is better for all of them is a gain.
    (found,) = gains(
        [made(1.0, t, s, 0.3 - t / 10, 0.5) for t in (0.0, 1.0) for s in (0, 1)]
    )
    assert found.gain.mean == pytest.approx(0.1)
    assert found.gain.count == 2
    assert found.harm.mean == 0


def test_noise_may_help_and_hurt_at_one_alpha() -> None:
    errors = {0.0: 0.2, 1.0: 0.25, 2.0: 0.1}
    (found,) = gains([made(1.0, t, s, errors[t], 0.5) for t in errors for s in (0, 1)])
    assert found.gain.mean == pytest.approx(0.1)
    assert found.harm.mean == pytest.approx(0.05)
    # The worst T is chosen on the other seed as well.
    (found,) = gains(
        [
            made(1.0, t, s, 0.3 if t == s + 1 else 0.1, 0.5)
            for t in (0, 1, 2)
            for s in (0, 1)
        ]
    )
    assert found.harm.mean == pytest.approx(0)


def test_temperatures_at_which_a_seed_was_lost_do_not_count() -> None:
    rows = [made(1.0, t, s, 0.3 - t / 10, 0.5) for t in (0.0, 1.0, 2.0) for s in (0, 1)]
    rows[-1].update(status="diverged", test_error=None, weight_change=None)
    (found,) = gains(rows)
    assert found.gain.mean == pytest.approx(0.1)
    assert gains([row for row in rows if row["temperature"] == 0.0]) == []


def test_the_two_ways_out_begin_in_the_kernel_regime() -> None:
    errors = {
        (64.0, 0.1): (0.2, 0.01),
        (64.0, 1.0): (0.21, 0.05),
        (64.0, 4.0): (0.15, 0.3),
        (1.0, 0.1): (0.2, 0.05),
        (0.1, 0.1): (0.25, 0.4),
        (0.01, 0.1): (0.1, 0.9),
    }
    rows = [made(a, t, s, e, c) for (a, t), (e, c) in errors.items() for s in range(3)]
    found = ways_out(rows)
    assert found is not None
    warmer, smaller = found
    assert (warmer.alpha, warmer.temperature) == (64.0, 4.0)
    assert warmer.gain.mean == pytest.approx(0.05)
    assert warmer.weight_change == pytest.approx(0.3)
    assert (smaller.alpha, smaller.temperature) == (0.1, 0.1)
    assert smaller.gain.mean == pytest.approx(-0.05)
    assert ways_out([row for row in rows if row["alpha"] == 64.0]) is None
    assert ways_out([row for row in rows if row["alpha"] < 1]) is None
