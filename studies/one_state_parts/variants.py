"""The variants: bases with one part changed, written plainly.

Nothing here is the library's, which is held against these lines by its own oracles.
"""

import dataclasses
import math
from typing import Literal

import torch
from candidates import (
    HIDDEN,
    VECTOR,
    Point,
    orthogonal_factor,
    roles,
)
from torch import Tensor, nn

BETA2 = 0.95
TINY = 1e-30
Measure = Literal["first", "always", "doubling"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a step does.

    Args:
        hidden: Step of hidden matrices, ``"orthogonal"`` or ``"factored"``.
        before: What is normalised before the orthogonal factor: ``"rows_columns"``,
            ``"columns"``, ``"rows"`` or ``"nothing"``.
        factor: ``"newton_schulz"`` or ``"exact"``, from a singular value decomposition.
        looks_ahead: Whether an orthogonal step takes μ m + (1-μ) g in place of m.
        rest: Step of all other parameters: ``"factored"``, ``"sinkhorn"``, ``"sign"``
            or ``"adamw"``.
        gradients: Over which scales are measured.
        measure: ``"first"`` of these only, ``"always"`` as a moving average, or again
            over as many gradients as were counted, each time that their number has
            ``"doubling"``.
        scales: One per ``"tensor"``, ``"row"``, ``"row_column"`` or ``"entry"``.
        floor: φ, in units of the block's root mean square.
    """

    hidden: str = "orthogonal"
    before: str = "rows_columns"
    factor: str = "newton_schulz"
    looks_ahead: bool = True
    rest: str = "factored"
    gradients: int = 100
    measure: Measure = "first"
    scales: str = "row_column"
    floor: float = 0.1


def variants() -> dict[str, Variant]:
    """Return the variants by name; a base, then what changes one part of it."""
    changed = {
        "orthogonal": (
            Variant(),
            {
                "nothing balanced": {"before": "nothing"},
                "columns balanced": {"before": "columns"},
                "rows balanced": {"before": "rows"},
                "exact factor": {"factor": "exact"},
                "no look-ahead": {"looks_ahead": False},
                "rest Sinkhorn": {"rest": "sinkhorn"},
                "rest sign": {"rest": "sign"},
                "rest AdamW": {"rest": "adamw"},
                "rest at the first gradient": {"gradients": 1},
                "rest always": {"measure": "always"},
            },
        ),
        "factored": (
            Variant(hidden="factored"),
            {
                "1 gradient": {"gradients": 1},
                "10 gradients": {"gradients": 10},
                "30 gradients": {"gradients": 30},
                "300 gradients": {"gradients": 300},
                "doubling": {"measure": "doubling"},
                "always": {"measure": "always"},
                "per tensor": {"scales": "tensor"},
                "per row": {"scales": "row"},
                "per entry": {"scales": "entry"},
                "no floor": {"floor": 0.0},
                "floor 0.03": {"floor": 0.03},
                "floor 0.3": {"floor": 0.3},
            },
        ),
    }
    return {
        name: dataclasses.replace(base, **changes)
        for base_name, (base, parts) in changed.items()
        for name, changes in {
            base_name: {},
            **{f"{base_name}, {part}": c for part, c in parts.items()},
        }.items()
    }


def rms(values: Tensor, dim: int | None = None) -> Tensor:
    """Return the root mean square along a dimension, positive."""
    square = values.square()
    mean = square.mean() if dim is None else square.mean(dim, keepdim=True)
    return mean.sqrt().clamp(min=TINY)


class Scales:
    """Scales of one block from the squares of its gradients.

    Args:
        shape: Of the block.
        variant: How they are measured.
    """

    def __init__(self, shape: torch.Size, variant: Variant) -> None:
        self._variant, self._is_matrix = variant, len(shape) > 1
        self._sum, self._count, self._seen = torch.zeros(shape), 0, 0
        self._held: Tensor | None = None
        self._next = 2 * variant.gradients

    def see(self, grad: Tensor) -> None:
        """Take one gradient, unless all its entries are 0."""
        if not grad.any():
            return
        if self._variant.measure == "always":
            self._sum = self._sum.lerp(grad.square(), 1 - BETA2 if self._seen else 1.0)
            self._count, self._seen = 1, self._seen + 1
            return
        if self._variant.measure == "doubling" and self._seen == self._next:
            # Until the new ones are measured the old ones serve.
            self._held, self._next = self.value(), 2 * self._next
            self._sum, self._count = torch.zeros_like(grad), 0
        if self._count < self._variant.gradients:
            self._sum, self._count = self._sum + grad.square(), self._count + 1
            if self._count == self._variant.gradients:
                self._held = None
        self._seen += 1

    def value(self) -> Tensor:
        """Return s."""
        if self._held is not None:
            return self._held
        mean = self._sum / max(self._count, 1)
        total = mean.mean()
        floor = self._variant.floor * total.sqrt()
        kind = self._variant.scales if self._is_matrix else "tensor"
        if kind == "tensor":
            found = total.expand_as(mean)
        elif kind == "entry":
            found = mean
        else:
            flat = mean.flatten(1)
            rows, cols = flat.mean(1, keepdim=True), flat.mean(0, keepdim=True)
            pair = rows.expand_as(flat) if kind == "row" else rows * cols / total
            found = pair.reshape(mean.shape)
        return 1 / found.sqrt().clamp(min=floor).clamp(min=TINY)


class VariantStepper:
    """Step a model as a variant does.

    Args:
        model: What is trained.
        variant: What its steps are.
        point: Its numbers.
        decay: Share that a matrix loses per step at the peak.
    """

    def __init__(
        self, model: nn.Module, variant: Variant, point: Point, decay: float
    ) -> None:
        self._variant, self._point, self._decay = variant, point, decay
        self._roles = roles(model)
        self._momenta = {p: torch.zeros_like(p) for p in self._roles}
        self._second = {p: torch.zeros_like(p) for p in self._roles}
        self.scales = {p: Scales(p.shape, variant) for p in self._roles}
        self._step = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Step all parameters; ``factor`` is the schedule's share of the peak."""
        self._step += 1
        point = self._point
        for param, role in self._roles.items():
            grad = param.grad
            if grad is None:
                continue
            if param.dim() > 1:
                param.mul_(1 - factor * self._decay)
            momentum = self._momenta[param]
            momentum.lerp_(grad, 1.0 if self._step == 1 else 1 - point.momentum)
            is_hidden = role == HIDDEN
            if is_hidden and self._variant.hidden == "orthogonal":
                param.sub_(self._orthogonal(param, grad), alpha=factor * point.lr)
                continue
            multiplier = 1.0 if is_hidden else getattr(point, role)
            along = self._of_rest(param, role, grad)
            param.sub_(along, alpha=factor * point.lr * multiplier)

    def _orthogonal(self, param: Tensor, grad: Tensor) -> Tensor:
        momentum, mu = self._momenta[param], self._point.momentum
        ahead = mu * momentum + (1 - mu) * grad
        x = (ahead if self._variant.looks_ahead else momentum).flatten(1)
        if self._variant.before in {"rows", "rows_columns"}:
            x = x / rms(x, 1)
        if self._variant.before in {"columns", "rows_columns"}:
            x = x / rms(x, 0)
        if self._variant.factor == "exact":
            left, _, right = torch.linalg.svd(x, full_matrices=False)
            found = left @ right
        else:
            found = orthogonal_factor(x)
        return found.view(param.shape) * (0.2 * math.sqrt(max(found.shape)))

    def _of_rest(self, param: Tensor, role: str, grad: Tensor) -> Tensor:
        momentum = self._momenta[param]
        rule = "factored" if role == HIDDEN else self._variant.rest
        if rule == "factored":
            self.scales[param].see(grad)
            return self.scales[param].value() * momentum
        if rule == "adamw":
            second = self._second[param]
            second.lerp_(grad.square(), 1 - BETA2)
            return momentum / ((second / (1 - BETA2**self._step)).sqrt() + 1e-8)
        if rule == "sign":
            return momentum.sign()
        if role == VECTOR:
            return momentum / rms(momentum)
        by_row = momentum.flatten(1) / rms(momentum.flatten(1), 1)
        return (by_row / rms(by_row, 0)).view(param.shape)
