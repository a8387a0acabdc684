"""Learning rates that need no schedule or no tuning, on top of fixed scales."""

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

FIRST_DISTANCE = 1e-6
BETA = math.sqrt(0.999)


class Distance:
    """Distance to the solution as Prodigy estimates it (Mishchenko and Defazio 2024).

    r ← β r + (1-β) f d² ⟨g, x₀-x⟩ and s ← β s + (1-β) f d² g, with the schedule's f;
    then d is the largest r / ‖s‖₁ so far. The norms are those of steps whose entries
    have one size, as factored ones nearly have.

    Args:
        params: What is stepped.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._began = {p: p.detach().clone() for p in params}
        self._sums = {p: torch.zeros_like(p) for p in self._began}
        self._product, self._found = 0.0, FIRST_DISTANCE

    def update(self, factor: float) -> float:
        """Take the gradients, and return d."""
        weight = (1 - BETA) * factor * self._found**2
        product, norm = BETA * self._product, 0.0
        for param, began in self._began.items():
            if param.grad is None:
                continue
            product += weight * (param.grad * (began - param)).sum().item()
            total = self._sums[param].mul_(BETA).add_(param.grad, alpha=weight)
            norm += total.abs().sum().item()
        self._product = product
        if norm > 0:
            self._found = max(self._found, product / norm)
        return self._found


class Average:
    """Weights that are trained at a mixture with their average (Defazio et al. 2024).

    Gradients are taken at y = (1-μ) z + μ x; steps move z; x is the average of z,
    weighted by the squares of the learning rates, and is what is evaluated.

    Args:
        params: What is stepped, at y.
        mu: μ.
    """

    def __init__(self, params: Iterable[Tensor], mu: float) -> None:
        self._z = {p: p.detach().clone() for p in params}
        self._mu, self._weights = mu, 0.0

    @contextlib.contextmanager
    def stepping(self, factor: float) -> Iterator[None]:
        """Give what is stepped z's place, and mix afterwards."""
        before = {p: p.detach().clone() for p in self._z}
        averages = {p: self._x(p) for p in self._z}
        yield
        self._weights += factor**2
        share = factor**2 / self._weights if self._weights else 0.0
        for param, z in self._z.items():
            # What the step did to y, decay of y included, is done to z.
            z.add_(param - before[param])
            x = averages[param].lerp(z, share)
            param.copy_(torch.lerp(z, x, self._mu))

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Let the parameters be x."""
        for param in self._z:
            param.copy_(self._x(param))

    def _x(self, param: Tensor) -> Tensor:
        return (param.detach() - (1 - self._mu) * self._z[param]) / self._mu
