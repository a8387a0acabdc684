"""The variants: bases with one part changed, written plainly.

Nothing here is the library's, which is held against these lines by its own oracles.
"""

import dataclasses
from typing import Literal

import torch
from candidates import BETA2, Candidate, Point, Stepper
from dynamic import Average, Distance
from torch import Tensor, nn

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
        dynamic: ``"distance"`` for a learning rate times the distance that Prodigy
            estimates, ``"schedule_free"`` for a constant one with averaged weights.
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
    dynamic: Literal["nothing", "distance", "schedule_free"] = "nothing"


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
                "distance estimated": {"dynamic": "distance"},
                "schedule-free": {"dynamic": "schedule_free"},
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

    @property
    def has_measured(self) -> bool:
        """Whether there was any gradient."""
        return self._seen > 0

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


class VariantStepper(Stepper):
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
        alike = Candidate(variant.hidden, variant.before, "nothing", variant.rest)
        # Scales are measured here, by gradients and not by a share of the run.
        super().__init__(model, alike, point, decay, steps=0)
        self._variant = variant
        self.scales = {p: Scales(p.shape, variant) for p in self._roles}
        following = dataclasses.replace(variant, measure="always")
        self._following = {p: Scales(p.shape, following) for p in self._roles}
        self._distance = Distance(self._roles)
        self._average = Average(self._roles, point.momentum)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Step all parameters; ``factor`` is the schedule's share of the peak."""
        if self._variant.dynamic == "distance":
            whole = self._point
            distance = self._distance.update(factor)
            self._point = dataclasses.replace(whole, lr=whole.lr * distance)
            super().step(factor)
            self._point = whole
        elif self._variant.dynamic == "schedule_free":
            # The average stands for the momentum, which is the gradient alone here.
            with self._average.stepping(factor):
                super().step(factor)
        else:
            super().step(factor)

    def end(self) -> None:
        """Put the average in place, if there is one."""
        if self._variant.dynamic == "schedule_free":
            self._average.put_in_place()

    def drift(self) -> dict[str, tuple[float, float]]:
        """Return how far the scales of now are from the fixed ones, by role.

        Returns:
            Root mean square over the entries of log₂ of the ratio, and the same less
            each tensor's mean, which a learning rate could undo.
        """
        found: dict[str, list[Tensor]] = {}
        for param, role in self._roles.items():
            if self.scales[param].has_measured:
                now, fixed = self._following[param].value(), self.scales[param].value()
                found.setdefault(role, []).append((now / fixed).log2().flatten())
        return {
            role: (_size(parts), _size([part - part.mean() for part in parts]))
            for role, parts in found.items()
        }

    def _ahead(self, param: Tensor, grad: Tensor) -> Tensor:
        if self._variant.looks_ahead:
            return super()._ahead(param, grad)
        return self._momenta[param]

    def _factor(self, matrix: Tensor) -> Tensor:
        if self._variant.factor != "exact":
            return super()._factor(matrix)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ right

    def _elementwise(self, param: Tensor, role: str) -> Tensor:
        if self._variant.rest != "factored":
            return super()._elementwise(param, role)
        grad = param.grad
        assert grad is not None
        self.scales[param].see(grad)
        self._following[param].see(grad)
        along = self._momenta[param]
        if self._variant.dynamic == "schedule_free":
            along = grad
        return self.scales[param].value() * along


def _size(parts: list[Tensor]) -> float:
    return torch.cat(parts).square().mean().sqrt().item()
