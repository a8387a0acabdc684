"""How far generated digits are from real ones, as a small classifier sees them."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from saiopt.lab.data.digits import Digits

_FEATURES = 32
_EPOCHS = 60


class DigitFeatures:
    """The hidden layer of a digit classifier that is trained the same way every time.

    Args:
        digits: All ten; the classifier learns from the training part.
    """

    def __init__(self, digits: Digits) -> None:
        network = MLPClassifier((_FEATURES,), max_iter=_EPOCHS, random_state=0)
        with warnings.catch_warnings():
            # A fixed number of epochs is wanted, not convergence.
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(digits.images.flatten(1).numpy(), digits.labels.numpy())
        self._weight = torch.from_numpy(network.coefs_[0]).double()
        self._bias = torch.from_numpy(network.intercepts_[0]).double()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: Shape (n, 1, 8, 8), in [-1, 1].

        Returns:
            Shape (n, 32), float64.
        """
        flat = images.cpu().double().flatten(1)
        return torch.relu(flat @ self._weight + self._bias)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Compare two samples as if each were normally distributed.

    |μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), with unbiased covariances.

    Args:
        first: Shape (n, d), n > 1.
        second: Shape (m, d), m > 1.

    Returns:
        At least 0 up to rounding; not finite where a sample is not.

    References:
        Heusel et al. 2017, equation 6.
    """
    if not (first.isfinite().all() and second.isfinite().all()):
        return float("nan")
    a, b = torch.cov(first.T), torch.cov(second.T)
    # The eigenvalues of a product of two covariances are real and not negative.
    roots = np.sqrt(np.linalg.eigvals((a @ b).numpy()).real.clip(min=0))
    shift = (first.mean(0) - second.mean(0)).square().sum()
    return float(shift + a.trace() + b.trace()) - 2 * float(roots.sum())
