"""What several optimizers take for several models, with the paper's figures beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn

from saiopt.choices import must_be_known

from .estimation import Estimate, estimate
from .models import build_model
from .optimizers import (
    CHOICES,
    COMPARED,
    SGDSAI,
    STATE_DTYPES,
    OptimizerChoice,
    formula_factory,
    is_installed,
    sgdsai_with,
)
from .state_allocation import OptimizerError, OptimizerFactory

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Row:
    """Hold one optimizer's memory for one model.

    Args:
        optimizer: its label.
        estimate: the memory, None where the optimizer cannot train the model.
        note: a sentence on how or why not, None where all is as usual.
        published_gb: the paper's figure for the state, None where it has none.
    """

    optimizer: str
    estimate: Estimate | None
    note: str | None
    published_gb: float | None


@dataclass(frozen=True)
class Report:
    """Hold the memory that one model takes with several optimizers.

    Args:
        model: its name as given.
        kind: its class.
        num_params: entries of all its parameters.
        dtype: of its weights.
        num_shards: ranks that share it.
        rows: one for each optimizer.
    """

    model: str
    kind: str
    num_params: int
    dtype: str
    num_shards: int
    rows: tuple[Row, ...]


def report_memory(
    models: Sequence[str],
    *,
    optimizers: Sequence[str] = COMPARED,
    dtype: str | None = None,
    state_dtypes: Sequence[str] = tuple(STATE_DTYPES),
    num_shards: int = 1,
) -> list[Report]:
    """Estimate the memory of models and optimizers that are given by name.

    Args:
        models: as :func:`saiopt.memory.models.build_model` takes them.
        optimizers: keys of :data:`saiopt.memory.optimizers.CHOICES`.
        dtype: a key of :data:`DTYPES`, None for the models' own.
        state_dtypes: dtypes of SGD-SaI's momentum, a row each; keys of
            :data:`saiopt.memory.optimizers.STATE_DTYPES`.
        num_shards: ranks that share each model, >= 1.

    Returns:
        A report for each model.

    Raises:
        ValueError: a name is unknown, or a number out of its range.
    """
    _check("models", models, None)
    _check("optimizers", optimizers, CHOICES)
    _check("state_dtype", state_dtypes, STATE_DTYPES)
    if dtype is not None:
        _check("dtype", [dtype], DTYPES)
    if num_shards < 1:
        raise ValueError(f"shards must be >= 1, got {num_shards}")
    choices = _choices(optimizers, state_dtypes)
    return [_report(name, choices, dtype, num_shards) for name in models]


def as_json(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return reports as JSON types.

    Args:
        reports: from :func:`report_memory`.

    Returns:
        A mapping for each report; sizes are in bytes.
    """
    values = [asdict(report) for report in reports]
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


@cache
def published() -> dict[str, Any]:
    """Return the paper's figures with their source, which ship with the package."""
    return json.loads(
        resources.files("saiopt.memory").joinpath("published.json").read_text()
    )


def _check(
    name: str, values: Sequence[str], allowed: Mapping[str, object] | None
) -> None:
    if not values:
        raise ValueError(f"{name} must name at least one, got none")
    for value in values:
        if allowed is not None and value not in allowed:
            raise ValueError(must_be_known(name, value, allowed))


def _choices(
    optimizers: Sequence[str], state_dtypes: Sequence[str]
) -> list[tuple[str, OptimizerChoice]]:
    choices = []
    for name in optimizers:
        if name in SGDSAI:
            choices += [
                (f"{name}-{kind}", sgdsai_with(name, kind)) for kind in state_dtypes
            ]
        else:
            choices.append((name, CHOICES[name]))
    return choices


def _report(
    name: str,
    choices: Sequence[tuple[str, OptimizerChoice]],
    dtype: str | None,
    num_shards: int,
) -> Report:
    model = build_model(name)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    # The paper measured whole models in float32.
    comparable = num_shards == 1 and (dtype or "".join(dtypes)) == "float32"
    figures = published()["state_gb"].get(name, {}) if comparable else {}
    return Report(
        model=name,
        kind=type(model).__name__,
        num_params=sum(p.numel() for p in model.parameters()),
        dtype=dtype or " and ".join(sorted(dtypes)),
        num_shards=num_shards,
        rows=tuple(
            _row(
                choice,
                model,
                DTYPES[dtype] if dtype else None,
                num_shards,
                figures.get(key.removesuffix("-float32")),
            )
            for key, choice in choices
        ),
    )


def _row(
    choice: OptimizerChoice,
    model: nn.Module,
    dtype: torch.dtype | None,
    num_shards: int,
    published_gb: float | None,
) -> Row:
    def found_with(factory: OptimizerFactory) -> Estimate:
        return estimate(model, factory, dtype=dtype, num_shards=num_shards)

    label, package = choice.label, choice.package
    problem = None
    if is_installed(choice):
        try:
            return Row(label, found_with(choice.factory(model)), None, published_gb)
        except OptimizerError as error:
            problem = f"does not run on this model: {_reason(error)}"
    if package is None:
        return Row(label, None, f"{label} {problem}", published_gb)
    problem = f"it {problem}" if problem else f"{package.name} is not installed"
    note = f"{label} by formula, since {problem}"
    return Row(label, found_with(formula_factory(package)), note, published_gb)


def _reason(error: OptimizerError) -> str:
    return (str(error.__cause__).splitlines() or [""])[0]
