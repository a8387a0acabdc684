"""SGD on the perceptron, event by event, with the law of plain SGD.

In units of T = η/B a step adds Σ y·x/√d over the batch's unfitted points to u = w/T,
and a point is unfitted while y u·x/√d < 1/(αT). A batch without an unfitted point does
nothing, so only the others, the events, are simulated. The number of steps up to and
with the next event is geometric; given that there is one, the number of unfitted points
in the batch is hypergeometric without zero, and which ones is uniform.

Two bounds keep an event cheap, and neither is an approximation. All signed points have
a positive first coordinate, so u₁ only grows and only the other coordinates can unfit a
point: a point with margin m stays fitted while they move less than
(m - 1/(αT)) / ‖x⊥/√d‖. Points with more room than a chosen reach are left out until u
has moved that far. And the products of an erring point with the others are kept, since
the same few points err again and again.

As long as many points are unfitted, a step that draws its batch finds one soon, and
costs nothing that grows with P. So training begins with plain steps, until one has
waited in vain for as long as a look at all points takes. What an event costs later does
not grow with P either, once training is long: the points that are followed lie within
a room that u₁ ~ P^(1/(1+χ)) narrows, P (room / u₁)^(1+χ) of them.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

# Room of the points that are followed, in lengths of u without its first coordinate:
# that length hardly changes once training is under way, so twice it is seldom used up.
_REACH = 2.0
# Events between looks at whether points can be left out, while most are followed.
_REVIEW = 64
# Products kept at once: 64 MiB.
_CACHE = 2**23


@numba.njit(cache=True)
def train(  # noqa: ANN201 - compiled; see Returns
    points: NDArray[np.float64],
    threshold: float,
    batch_size: int,
    max_events: int,
    rng: np.random.Generator,
    patience: int = 0,
):
    """Train until every point is fitted.

    Args:
        points: y·x/√d, shape (P, d), column 0 positive.
        threshold: 1/(αT), the margin at which a point counts as fitted.
        batch_size: B <= P, points drawn without replacement, anew for every step.
        max_events: Steps that change u, at most about this many.
        rng: Source of the draws.
        patience: Plain steps in a row that find no unfitted point, after which events
            are simulated; 0 for events from the first.

    Returns:
        u, shape (d,); steps including those that do nothing, as a float; events; and
        whether every point is fitted.
    """
    weights = np.zeros(points.shape[1])
    room_per_length = np.sqrt((points[:, 1:] ** 2).sum(axis=1))
    steps, events, idle = _step_plainly(
        points, weights, threshold, batch_size, patience, max_events, rng
    )
    fitted = False
    while not fitted and events < max_events:
        margins = points @ weights
        if idle and (margins < threshold).any():
            # Otherwise training had ended before it waited.
            steps += idle
        idle = 0
        reach = max(2.0, _REACH * math.sqrt((weights[1:] ** 2).sum()))
        near = np.nonzero(margins - threshold < reach * room_per_length)[0]
        stop = (
            min(max_events, events + _REVIEW)
            if 2 * len(near) > len(points)
            else (max_events)
        )
        more_steps, events, fitted = _follow(
            points[near].T.copy(),
            margins[near],
            weights,
            threshold,
            (batch_size, len(points)),
            reach,
            (events, stop),
            rng,
        )
        steps += more_steps
    return weights, steps, events, fitted


@numba.njit(cache=True)
def _step_plainly(points, weights, threshold, batch_size, patience, max_events, rng):  # noqa: ANN001, ANN202
    """Step as plain SGD does, until it finds nothing to do for a while.

    To stop within a wait and to draw the rest of it is right: a geometric wait has no
    memory. Returns the steps up to the last event, the events, and the steps since.
    """
    steps, events, idle = 0.0, 0, 0
    drawn = np.empty(batch_size, np.int64)
    while idle < patience and events < max_events:
        num_unfitted = 0
        for i in range(batch_size):
            point = _another(drawn[:i], len(points), rng)
            drawn[i] = point
        # All of a batch are looked at before any of them moves u.
        for i in range(batch_size):
            margin = 0.0
            for j in range(len(weights)):
                margin += points[drawn[i], j] * weights[j]
            if margin < threshold:
                drawn[num_unfitted] = drawn[i]
                num_unfitted += 1
        for i in range(num_unfitted):
            weights += points[drawn[i]]
        idle += 1
        if num_unfitted:
            steps, events, idle = steps + idle, events + 1, 0
    return steps, events, idle


@numba.njit(cache=True)
def _another(drawn, size, rng):  # noqa: ANN001, ANN202
    """Draw a point that was not drawn before."""
    while True:
        point = rng.integers(0, size)
        if not (drawn == point).any():
            return point


@numba.njit(cache=True)
def _follow(near, margins, weights, threshold, sizes, reach, window, rng):  # noqa: ANN001, ANN202
    """Train on the points near the boundary, as long as no other can be unfitted."""
    batch_size, size = sizes
    events, stop = window
    count = len(margins)
    start = weights.copy()
    slots = np.full(count, -1)
    cache = np.empty((max(1, min(_CACHE // max(count, 1), count)), count))
    owners = np.zeros(len(cache), np.int64)
    kept = 0
    unfitted = np.empty(count, np.int64)
    steps = 0.0
    while events < stop:
        num_unfitted = _collect(margins, threshold, unfitted)
        if num_unfitted == 0:
            return steps, events, True
        wait, num_drawn = draw_event(num_unfitted, size, batch_size, rng)
        steps += wait
        for drawn in range(num_drawn):
            # A partial shuffle: distinct points, every choice equally likely.
            other = rng.integers(drawn, num_unfitted)
            unfitted[drawn], unfitted[other] = unfitted[other], unfitted[drawn]
            point = unfitted[drawn]
            if slots[point] < 0:
                slot = kept % len(cache)
                if kept >= len(cache):
                    slots[owners[slot]] = -1
                slots[point], owners[slot] = slot, point
                kept += 1
                _products(near, point, cache[slot])
            margins += cache[slots[point]]
            weights += near[:, point]
        events += 1
        if ((weights[1:] - start[1:]) ** 2).sum() > reach**2:
            break
    return steps, events, False


@numba.njit(cache=True)
def _collect(margins, threshold, unfitted):  # noqa: ANN001, ANN202
    count = 0
    for i in range(len(margins)):
        if margins[i] < threshold:
            unfitted[count] = i
            count += 1
    return count


@numba.njit(cache=True)
def _products(near, point, out):  # noqa: ANN001, ANN202
    out[:] = 0.0
    for j in range(near.shape[0]):
        out += near[j, point] * near[j]


@numba.njit(cache=True)
def draw_event(num_unfitted, size, batch_size, rng):  # noqa: ANN001, ANN201
    """Draw the next batch that has an unfitted point.

    P(k) = C(U, k) C(P-U, B-k) / C(P, B) is the chance of k unfitted points in a batch;
    with q = 1 - P(0) the wait is geometric(q), and k follows P(k)/q.

    Args:
        num_unfitted: U >= 1.
        size: P.
        batch_size: B <= P.
        rng: Source of the draws.

    Returns:
        Steps up to and with that batch, as a float; its number of unfitted points.
    """
    # 1 - P(0), summed so that it stays exact where it is small.
    none, some = 1.0, 0.0
    for i in range(batch_size):
        some += none * num_unfitted / (size - i)
        none *= max(size - num_unfitted - i, 0) / (size - i)
    wait = 1.0
    if some < 1.0:
        wait += math.floor(math.log1p(-rng.random()) / math.log1p(-some))
    place = rng.random() * some
    for k in range(1, min(num_unfitted, batch_size)):
        chance = _hypergeometric(k, num_unfitted, size, batch_size)
        if place < chance:
            return wait, k
        place -= chance
    return wait, min(num_unfitted, batch_size)


@numba.njit(cache=True)
def _hypergeometric(k, num_unfitted, size, batch_size):  # noqa: ANN001, ANN202
    if batch_size - k > size - num_unfitted:
        return 0.0
    return math.exp(
        _log_choose(num_unfitted, k)
        + _log_choose(size - num_unfitted, batch_size - k)
        - _log_choose(size, batch_size)
    )


@numba.njit(cache=True)
def _log_choose(n, k):  # noqa: ANN001, ANN202
    return math.lgamma(n + 1.0) - math.lgamma(k + 1.0) - math.lgamma(n - k + 1.0)
