"""What several optimizers take for several models, with the paper's figures beside."""

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.choices import must_be_known
from saiopt.lab.model_memory.models import DTYPES, build_model, put_parameters
from saiopt.lab.optimizers import OPTIMIZERS, OptimizerSpec, set_mode, variants
from saiopt.memory import Estimate, OptimizerError, estimate
from saiopt.memory.state_allocation import OptimizerFactory
from saiopt.optimizer.options import STATE_DTYPES

COMPARED = ("adamw", "sgd", "adam-mini", "prodigy", "sgdsai")
# No state depends on them.
_LR, _DECAY = 1e-3, 0.1

Formula = Callable[[Tensor], list[Tensor]]


@dataclasses.dataclass(frozen=True)
class MemoryRow:
    """Hold one optimizer's memory for one model.

    Args:
        optimizer: Its label.
        estimate: The memory, None where the optimizer cannot train the model.
        note: A sentence on how or why not, None where all is as usual.
        published_gb: The paper's figure for the state, None where it has none.
    """

    optimizer: str
    estimate: Estimate | None
    note: str | None
    published_gb: float | None


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Hold the memory that one model takes with several optimizers.

    Args:
        model: Its name as given.
        kind: Its class.
        num_params: Entries of all its parameters.
        dtype: Of its weights.
        num_shards: Ranks that share it.
        rows: One for each optimizer.
    """

    model: str
    kind: str
    num_params: int
    dtype: str
    num_shards: int
    rows: tuple[MemoryRow, ...]


def report_memory(
    models: Sequence[str],
    *,
    optimizers: Sequence[str] = COMPARED,
    dtype: str | None = None,
    state_dtypes: Sequence[str] = STATE_DTYPES,
    num_shards: int = 1,
) -> list[MemoryReport]:
    """Estimate the memory of models and optimizers that are given by name.

    Args:
        models: As :func:`saiopt.lab.model_memory.models.build_model` takes them.
        optimizers: Keys of :data:`saiopt.lab.optimizers.OPTIMIZERS`.
        dtype: A key of :data:`saiopt.lab.model_memory.models.DTYPES`, None for the
            models' own.
        state_dtypes: Dtypes of SGD-SaI's momentum, a row each.
        num_shards: Ranks that share each model, >= 1.

    Returns:
        A report for each model.

    Raises:
        ValueError: If a name is unknown, or a number out of its range.
    """
    _check("models", models, None)
    _check("optimizers", optimizers, OPTIMIZERS)
    _check("state_dtype", state_dtypes, STATE_DTYPES)
    if dtype is not None:
        _check("dtype", [dtype], DTYPES)
    if num_shards < 1:
        raise ValueError(f"shards must be >= 1, got {num_shards}")
    specs = {}
    for name in optimizers:
        specs |= variants(name, state_dtypes)
    return [_report(name, specs, dtype, num_shards) for name in models]


def as_json(reports: Sequence[MemoryReport]) -> list[dict[str, Any]]:
    """Return reports as JSON types.

    Args:
        reports: From :func:`report_memory`.

    Returns:
        A mapping for each report; sizes are in bytes.
    """
    values = [dataclasses.asdict(report) for report in reports]
    for value, report in zip(values, reports, strict=True):
        for entry, row in zip(value["rows"], report.rows, strict=True):
            if row.estimate is not None:
                entry["estimate"] |= {
                    "total_bytes": row.estimate.total_bytes,
                    "release_bytes": row.estimate.release_bytes,
                    "state_bytes_per_parameter": (
                        row.estimate.state_bytes_per_parameter
                    ),
                }
    return values


@functools.cache
def published() -> dict[str, Any]:
    """Return the paper's figures with their source, which ship with the package."""
    room = resources.files("saiopt.lab.model_memory")
    return json.loads(room.joinpath("published.json").read_text())


def optimizer_factory(spec: OptimizerSpec, model: nn.Module) -> OptimizerFactory:
    """Return a factory of the optimizer that the lab trains a model with.

    Args:
        spec: The optimizer's entry.
        model: Whose modules, names and sizes an optimizer may want to know. The
            parameters that the factory gets stand in for its trainable ones, in their
            order, while the optimizer is built.

    Returns:
        What :func:`saiopt.memory.estimate` takes.
    """

    def factory(params: list[nn.Parameter]) -> Optimizer:
        own = list(model.parameters())
        given = iter(params)
        put_parameters(model, [next(given) if p.requires_grad else p for p in own])
        try:
            optimizer = spec.make(model, _LR, _DECAY, seed=0)
        finally:
            put_parameters(model, own)
        set_mode(optimizer, training=True)
        return optimizer

    return factory


class _FormulaOptimizer(Optimizer):
    """Allocate a formula's tensors as state."""

    def __init__(self, params: list[nn.Parameter], formula: Formula) -> None:
        super().__init__(params, {})
        self._formula = formula

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["tensors"] = self._formula(param)


def _copies(count: int) -> Formula:
    return lambda param: [torch.empty_like(param) for _ in range(count)]


def _adam_mini_formula(param: Tensor) -> list[Tensor]:
    """Keep m, and one v for each row of a matrix: an upper bound."""
    rows = param.shape[0] if param.dim() > 0 else 1
    return [torch.empty_like(param), param.new_empty(rows)]


# The tensors that an optimizer keeps for a parameter, where its package is not
# installed or cannot step the model.
_FORMULAS: dict[str, Formula] = {
    "lion": _copies(1),
    "adam-mini": _adam_mini_formula,
    "prodigy": _copies(4),
}


def _check(name: str, values: Sequence[str], allowed: Collection[str] | None) -> None:
    if not values:
        raise ValueError(f"{name} must name at least one, got none")
    for value in values:
        if allowed is not None and value not in allowed:
            raise ValueError(must_be_known(name, value, allowed))


def _report(
    name: str,
    specs: Mapping[str, OptimizerSpec],
    dtype: str | None,
    num_shards: int,
) -> MemoryReport:
    model = build_model(name)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    # The paper measured whole models in float32.
    comparable = num_shards == 1 and (dtype or "".join(dtypes)) == "float32"
    figures = published()["state_gb"].get(name, {}) if comparable else {}

    def found_with(factory: OptimizerFactory) -> Estimate:
        chosen = DTYPES[dtype] if dtype else None
        return estimate(model, factory, dtype=chosen, num_shards=num_shards)

    return MemoryReport(
        model=name,
        kind=type(model).__name__,
        num_params=sum(p.numel() for p in model.parameters()),
        dtype=dtype or " and ".join(sorted(dtypes)),
        num_shards=num_shards,
        rows=tuple(
            MemoryRow(
                spec.label or key,
                *_found_or_noted(key, spec, model, found_with),
                figures.get(key.removesuffix("-float32")),
            )
            for key, spec in specs.items()
        ),
    )


def _found_or_noted(
    name: str,
    spec: OptimizerSpec,
    model: nn.Module,
    found_with: Callable[[OptimizerFactory], Estimate],
) -> tuple[Estimate | None, str | None]:
    label = spec.label or name
    problem = f"does not run, since {spec.package} is not installed"
    reason = f"{spec.package} is not installed"
    if spec.installed:
        try:
            return found_with(optimizer_factory(spec, model)), None
        except OptimizerError as error:
            problem = f"does not run on this model: {_reason(error)}"
            reason = f"it {problem}"
    if name not in _FORMULAS:
        return None, f"{label} {problem}"
    formula = _FORMULAS[name]
    found = found_with(lambda params: _FormulaOptimizer(params, formula))
    return found, f"{label} by formula, since {reason}"


def _reason(error: OptimizerError) -> str:
    return (str(error.__cause__).splitlines() or [""])[0]
