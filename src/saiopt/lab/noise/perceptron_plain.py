"""Plain SGD on the perceptron: the specification of the event-driven simulation."""

import numpy as np
from numpy.typing import NDArray


def train_plainly(
    points: NDArray[np.float64],
    threshold: float,
    batch_size: int,
    max_steps: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], int, bool]:
    """Train step by step, looking at the whole training loss after each.

    Args:
        points: y·x/√d, shape (P, d).
        threshold: 1/(αT), the margin at which a point counts as fitted.
        batch_size: B <= P, points drawn without replacement, anew for every step.
        max_steps: Before training is given up.
        rng: Source of the draws.

    Returns:
        u = w/T, shape (d,); steps; and whether every point is fitted.
    """
    weights = np.zeros(points.shape[1])
    for step in range(max_steps):
        if (points @ weights >= threshold).all():
            return weights, step, True
        batch = points[rng.choice(len(points), batch_size, replace=False)]
        weights = weights + batch[batch @ weights < threshold].sum(axis=0)
    return weights, max_steps, bool((points @ weights >= threshold).all())
