"""The candidates of the study: what a step does to each kind of parameter.

Plain and slow on purpose. Nothing here is the library's: what the study chooses is then
written there, and a test holds it against these lines.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

HIDDEN, EMBEDDING, HEAD, VECTOR = "hidden", "embedding", "head", "vector"
# Floor of a factored scale, in units of the block's root mean square.
PHI = 0.1
# Share of the run over which scales are measured where a candidate measures.
MEASURED_SHARE = 0.1
BETA2 = 0.95
EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to step a model.

    Args:
        hidden: ``"orthogonal"``, or the rule of the rest for hidden matrices too.
        before: What the momentum goes through before Newton-Schulz: ``"nothing"``,
            ``"rows_columns"``, ``"columns"``, ``"rows"`` or ``"measured"``.
        after: What the orthogonal factor goes through: ``"nothing"`` or ``"normuon"``.
        rest: Rule of embeddings, heads and vectors: ``"factored"``, ``"sinkhorn"``,
            ``"sign"``, ``"row"`` or ``"adamw"``.
        share: Of the run, over which scales are measured.
    """

    hidden: str
    before: str
    after: str
    rest: str
    share: float = MEASURED_SHARE


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a candidate's numbers stand; lr multiplies all of them.

    Args:
        lr: η of the hidden matrices.
        momentum: μ of everything.
        embedding: Multiplier of η for embeddings, tied or not.
        head: Multiplier for an output layer with a weight of its own.
        vector: Multiplier for vectors.
    """

    lr: float
    momentum: float
    embedding: float
    head: float
    vector: float


def roles(model: nn.Module) -> dict[Tensor, str]:
    """Return what each parameter is.

    An embedding is the weight of an ``nn.Embedding``, tied to a head or not; a head the
    weight of the last linear layer that is no embedding and reads out; a vector what
    has one row, one column or one dimension. Everything else is hidden.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name in {"lm_head", "classifier"}
    }
    return {
        p: EMBEDDING
        if p in embeddings
        else VECTOR
        if p.dim() < 2 or p.shape[0] == 1 or p.flatten(1).shape[1] == 1
        else HEAD
        if p in heads
        else HIDDEN
        for p in model.parameters()
    }


def has_head(model: nn.Module) -> bool:
    """Tell whether the output layer has a weight of its own."""
    return HEAD in roles(model).values()


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Return UVᵀ of a matrix to the precision of five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-30)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def _over_rms(matrix: Tensor, dim: int | None) -> Tensor:
    """Divide by the root mean square along a dimension; what is zero stays zero."""
    square = matrix.square()
    mean = square.mean() if dim is None else square.mean(dim, keepdim=True)
    return matrix / mean.sqrt().clamp(min=1e-30)


class _Scales:
    """Factored scales of one block, measured over its first gradients."""

    def __init__(self, shape: torch.Size, num_gradients: int) -> None:
        self._left, self._count = num_gradients, 0
        rows, cols = shape[0] if shape else 1, math.prod(shape[1:])
        self._is_matrix = len(shape) > 1
        self._row, self._col = torch.zeros(rows), torch.zeros(cols)

    def measure(self, grad: Tensor) -> None:
        """Count a gradient that has any entry, until enough are counted."""
        if self._left == 0 or not grad.any():
            return
        square = grad.reshape(len(self._row), -1).square()
        self._row += square.mean(1)
        self._col += square.mean(0)
        self._left, self._count = self._left - 1, self._count + 1

    def apply(self, momentum: Tensor) -> Tensor:
        """Return s ⊙ m."""
        if self._count == 0:
            return torch.zeros_like(momentum)
        row, col = self._row / self._count, self._col / self._count
        mean = row.mean()
        if not self._is_matrix:
            return momentum / mean.sqrt()
        v = row[:, None] * col[None, :] / mean
        floor = PHI * mean.sqrt()
        scaled = momentum.reshape(v.shape) / v.sqrt().clamp(min=floor)
        return scaled.view(momentum.shape)


class Stepper:
    """Step a model as a candidate does.

    Args:
        model: What is trained.
        candidate: What its steps are.
        point: Its numbers.
        decay: Share that a weight of two dimensions or more loses per step at the peak.
        steps: Length of the run, which says how long is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        candidate: Candidate,
        point: Point,
        decay: float,
        steps: int,
    ) -> None:
        self._candidate, self._point, self._decay = candidate, point, decay
        self._roles = roles(model)
        self._momenta = {p: torch.zeros_like(p) for p in self._roles}
        count = max(round(candidate.share * steps), 1)
        self._scales = {p: _Scales(p.shape, count) for p in self._roles}
        self._second = {p: torch.zeros_like(p) for p in self._roles}
        self._rows = {p: torch.zeros(len(p) if p.dim() else 1, 1) for p in self._roles}
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
            if role == HIDDEN and self._candidate.hidden == "orthogonal":
                param.sub_(self._orthogonal(param, grad), alpha=factor * point.lr)
                continue
            multiplier = 1.0 if role == HIDDEN else getattr(point, role)
            along = self._elementwise(param, role)
            param.sub_(along, alpha=factor * point.lr * multiplier)

    def end(self) -> None:
        """Leave the weights, which are evaluated where they are trained."""

    def _orthogonal(self, param: Tensor, grad: Tensor) -> Tensor:
        x = self._ahead(param, grad).flatten(1)
        before = self._candidate.before
        if before == "measured":
            self._scales[param].measure(grad)
            x = self._scales[param].apply(x)
        if before in {"rows", "rows_columns"}:
            x = _over_rms(x, 1)
        if before in {"columns", "rows_columns"}:
            x = _over_rms(x, 0)
        found = self._factor(x)
        if self._candidate.after == "normuon":
            second = self._rows[param]
            second.lerp_(found.square().mean(1, keepdim=True), 1 - BETA2)
            found = found / (second.sqrt() + EPS)
            found = found * math.sqrt(min(found.shape)) / found.norm()
        return found.view(param.shape) * (0.2 * math.sqrt(max(found.shape)))

    def _ahead(self, param: Tensor, grad: Tensor) -> Tensor:
        momentum, mu = self._momenta[param], self._point.momentum
        return mu * momentum + (1 - mu) * grad

    def _factor(self, matrix: Tensor) -> Tensor:
        return orthogonal_factor(matrix)

    def _elementwise(self, param: Tensor, role: str) -> Tensor:
        momentum, grad = self._momenta[param], param.grad
        assert grad is not None
        rule = self._candidate.rest
        if rule == "factored":
            self._scales[param].measure(grad)
            return self._scales[param].apply(momentum)
        if rule == "adamw":
            second = self._second[param]
            second.lerp_(grad.square(), 1 - BETA2)
            # m begins with g, so that only the second moment starts from zero.
            return momentum / ((second / (1 - BETA2**self._step)).sqrt() + EPS)
        if rule == "sign":
            return momentum.sign()
        if role == VECTOR:
            return _over_rms(momentum, None)
        by_row = _over_rms(momentum.flatten(1), 1)
        if rule == "sinkhorn":
            by_row = _over_rms(by_row, 0)
        return by_row.view(param.shape)


def candidates() -> dict[str, Candidate]:
    """Return the candidates by name, in the order in which they run."""
    before = ("rows_columns", "nothing", "columns", "measured")
    named = {
        f"{name} + factored": Candidate("orthogonal", name, "nothing", "factored")
        for name in before
    }
    named["nothing, normuon + factored"] = Candidate(
        "orthogonal", "nothing", "normuon", "factored"
    )
    named["nothing + adamw"] = Candidate("orthogonal", "nothing", "nothing", "adamw")
    named["adamw"] = Candidate("adamw", "nothing", "nothing", "adamw")
    for rest in ("sinkhorn", "adamw", "row", "sign"):
        named[f"rows_columns + {rest}"] = Candidate(
            "orthogonal", "rows_columns", "nothing", rest
        )
    named["factored"] = Candidate("factored", "nothing", "nothing", "factored")
    return named


def measured_longer() -> dict[str, Candidate]:
    """Return what was asked afterwards: a chosen candidate that measures longer."""
    chosen = candidates()["rows_columns + factored"]
    return {
        f"rows_columns + factored, measured for {name}": dataclasses.replace(
            chosen, share=share
        )
        for name, share in (("a third", 1 / 3), ("all", 1.0))
    }


def state_numbers(model: nn.Module, candidate: Candidate) -> int:
    """Return how many numbers the candidate's steps remember, once measured."""
    kinds = roles(model)
    return sum(_kept(p, role, candidate) for p, role in kinds.items())


def _kept(param: Tensor, role: str, candidate: Candidate) -> int:
    rows = len(param) if param.dim() else 1
    both = rows + param.numel() // rows if param.dim() > 1 else 1
    is_orthogonal = role == HIDDEN and candidate.hidden == "orthogonal"
    extra: dict[str, int] = {"factored": both, "adamw": param.numel()}
    if not is_orthogonal:
        return param.numel() + extra.get(candidate.rest, 0)
    measured = both if candidate.before == "measured" else 0
    return param.numel() + measured + (rows if candidate.after == "normuon" else 0)


def moves_along(name: str, point: Point) -> list[Point]:
    """Return the two neighbours of a point along one of its numbers."""
    if name == "momentum":
        steps = [0.8, 0.85, 0.9, 0.95, 0.975]
        at = steps.index(point.momentum)
        values = [steps[i] for i in (at - 1, at + 1) if 0 <= i < len(steps)]
    else:
        values = [getattr(point, name) / 2, getattr(point, name) * 2]
    return [dataclasses.replace(point, **{name: value}) for value in values]
