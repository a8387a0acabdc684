"""The perceptron's points: one coordinate decides, the others are noise."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def numpy_generator(*key: float) -> np.random.Generator:
    """Return a generator for a key, unrelated to those of all other keys.

    Args:
        key: Numbers such as an exponent, a size and a seed.

    Returns:
        A fresh generator in a state that is a hash of the key.
    """
    digest = hashlib.sha256(repr(tuple(map(float, key))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def signed_points(
    size: int, dimension: int, chi: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw points and return y·x/√d, all that a linear predictor sees of them.

    |x₁| has the density ~ |x₁|^χ exp(-x₁²/2), the chi distribution with χ+1 degrees of
    freedom; its sign is fair and is the label y. The other coordinates are N(0, 1).

    Args:
        size: P, number of points.
        dimension: d.
        chi: χ > -1; the larger, the fewer points lie near the boundary.
        rng: Source of the draws.

    Returns:
        Shape (P, d), float64; column 0 is |x₁|/√d.

    References:
        Sclocchi, Geiger and Wyart (2023), arXiv 2301.13703, perceptron model.
    """
    labels = rng.choice([-1.0, 1.0], size)
    points = rng.standard_normal((size, dimension))
    signed = labels[:, None] * points
    signed[:, 0] = np.sqrt(rng.chisquare(chi + 1, size))
    return signed / np.sqrt(dimension)
