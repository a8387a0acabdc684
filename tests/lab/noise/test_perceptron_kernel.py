import math

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from saiopt.lab.noise import perceptron_kernel
from saiopt.lab.noise.perceptron_data import numpy_generator, signed_points
from saiopt.lab.noise.perceptron_kernel import draw_event, train
from saiopt.lab.noise.perceptron_plain import train_plainly

# Each two-sample test fails for a right simulation once in a thousand choices of the
# seeds, which are fixed; there are twenty, so a wrong alarm has a chance of 2 %.
FALSE_ALARM = 1e-3
RUNS = 300


def both(
    size: int,
    dimension: int,
    chi: float,
    batch_size: int,
    threshold: float,
    patience: int,
):
    """(t* in steps, ‖w‖, w₁) of many runs of either kind, each on its own points."""
    outcomes = []
    for kind in range(2):
        rows = []
        for run in range(RUNS):
            rng = numpy_generator(kind, run, size, chi)
            points = signed_points(size, dimension, chi, rng)
            if kind:
                weights, steps, fitted = train_plainly(
                    points, threshold, batch_size, 100_000, rng
                )
            else:
                weights, steps, _, fitted = train(
                    points, threshold, batch_size, 100_000, rng, patience
                )
            assert fitted
            rows.append((steps, np.linalg.norm(weights), weights[0]))
        outcomes.append(np.array(rows))
    return outcomes


@pytest.mark.parametrize(
    ("size", "dimension", "chi", "batch_size", "threshold", "patience"),
    [(24, 4, 1.0, 2, 1e-4, 0), (16, 3, 0.0, 1, 0.5, 0), (40, 12, 3.0, 7, 2.0, 0),
     (24, 4, 1.0, 2, 1e-4, 3), (40, 12, 3.0, 7, 2.0, 2)],
)  # fmt: skip
def test_events_have_the_law_of_plain_sgd(
    size: int,
    dimension: int,
    chi: float,
    batch_size: int,
    threshold: float,
    patience: int,
) -> None:
    ours, plain = both(size, dimension, chi, batch_size, threshold, patience)
    for column in range(3):
        assert ks_2samp(ours[:, column], plain[:, column]).pvalue > FALSE_ALARM
    # The means of t* are heavy-tailed, their logarithms are not.
    difference = np.log(ours[:, 0]).mean() - np.log(plain[:, 0]).mean()
    error = math.hypot(*(np.log(rows[:, 0]).std() for rows in (ours, plain)))
    assert abs(difference) < 3.29 * error / math.sqrt(RUNS)


def test_the_bounds_that_save_work_change_no_bit_of_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Compiled constants are frozen, so the plain Python of the functions is run.
    for name in ("train", "_follow", "_collect", "_products", "draw_event"):
        compiled = getattr(perceptron_kernel, name)
        monkeypatch.setattr(perceptron_kernel, name, compiled.py_func)
    points = signed_points(200, 5, 1.0, numpy_generator(3))
    paths = []
    for reach, cache in ((1e9, 2**23), (2.0, 2**23), (0.05, 400)):
        monkeypatch.setattr(perceptron_kernel, "_REACH", reach)
        monkeypatch.setattr(perceptron_kernel, "_CACHE", cache)
        rng = numpy_generator(4)
        paths.append(perceptron_kernel.train(points, 1e-4, 2, 400, rng))
    for weights, steps, events, fitted in paths[1:]:
        assert weights == pytest.approx(paths[0][0], rel=1e-12)
        assert (steps, events, fitted) == paths[0][1:]


@pytest.mark.parametrize(
    ("unfitted", "size", "batch"), [(3, 10, 2), (9, 10, 2), (2, 9, 5), (7, 8, 4)]
)
def test_an_event_is_the_first_batch_with_an_unfitted_point(
    unfitted: int, size: int, batch: int
) -> None:
    rng = np.random.default_rng(0)
    draws = [draw_event(unfitted, size, batch, rng) for _ in range(4000)]
    ways = [
        math.comb(unfitted, k) * math.comb(size - unfitted, batch - k)
        for k in range(batch + 1)
    ]
    chance = 1 - ways[0] / sum(ways)
    waits = np.array([wait for wait, _ in draws])
    if chance < 1:
        error = math.sqrt((1 - chance) / chance**2 / len(draws))
        assert abs(waits.mean() - 1 / chance) < 3.29 * error
    else:
        assert (waits == 1).all()
    counts = np.bincount([k for _, k in draws], minlength=batch + 1)
    possible = np.array(ways, dtype=float) > 0
    possible[0] = False
    assert counts[~possible].sum() == 0
    expected = len(draws) * np.array(ways)[possible] / sum(ways[1:])
    if possible.sum() > 1:
        assert chisquare(counts[possible], expected).pvalue > FALSE_ALARM


def test_plain_steps_end_with_their_patience_or_with_the_events() -> None:
    points = signed_points(300, 6, 1.0, numpy_generator(5))
    for most in (1, 7):
        weights, steps, events, fitted = train(
            points, 0.1, 3, most, numpy_generator(6), 10**6
        )
        assert (events, fitted) == (most, False)
        assert steps >= most
    # All points lie at one place: after one event nothing is unfitted.
    same = np.tile(points[:1], (50, 1))
    weights, steps, events, fitted = train(same, 1e-4, 3, 9, numpy_generator(6), 5)
    assert (steps, events, fitted) == (1, 1, True)
    assert weights == pytest.approx(3 * points[0])


def test_every_point_is_fitted_at_the_end_and_not_one_event_before() -> None:
    points = signed_points(300, 6, 1.0, numpy_generator(8))
    weights, _, events, fitted = train(points, 0.1, 2, 10**6, numpy_generator(9))
    assert fitted
    assert (points @ weights >= 0.1).all()
    weights, _, stopped, fitted = train(points, 0.1, 2, events - 1, numpy_generator(9))
    assert (stopped, fitted) == (events - 1, False)
    assert (points @ weights < 0.1).any()
