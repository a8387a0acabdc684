"""Which blocks begin at this step, and with which scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .fsdp1 import is_slice
from .moments import Moments
from .scaling import scales
from .sharding import is_sharded, largest_over_ranks, measure_blocks


@dataclass(frozen=True)
class Candidate:
    """Hold a block that has not begun and may at this step.

    Args:
        param: the parameter, with a gradient on at least one of its ranks.
        group: its param group.
        scale: its 0-d float32 entry in the state.
        preset: the scale it was given beforehand, 0 where its gradient must tell.
    """

    param: Tensor
    group: dict[str, Any]
    scale: Tensor
    preset: float


def begin_pending(
    members: Sequence[tuple[dict[str, Any], Sequence[Tensor]]],
    states: Mapping[Tensor, Mapping[str, Tensor]],
    pending: Mapping[Tensor, float],
    groups: Sequence[dict[str, Any]],
) -> set[Tensor]:
    """Calibrate the pending blocks of a step that can be.

    The choice rests on what all ranks know: a rank whose part of a block is empty, or
    has no gradient, takes part in the block's collective.

    Args:
        members: param groups, and their parameters that the step concerns.
        states: the state of each parameter.
        pending: the preset scale of each parameter that has not begun.
        groups: all param groups of the optimizer.

    Returns:
        The parameters that begin at this step.

    Raises:
        ValueError: see :func:`begin`.
    """
    if not pending and not _awaits_largest(groups):
        return set()
    candidates = [
        # A block without entries has nothing to measure, and nothing to scale.
        Candidate(p, group, states[p]["scale"], pending[p] or float(_is_empty(p)))
        for group, params in members
        for p in params
        if p in pending and (p.grad is not None or is_sharded(p))
    ]
    if not candidates and not _awaits_largest(groups):
        return set()
    begins = begin(candidates, groups)
    return {c.param for c, now in zip(candidates, begins, strict=True) if now}


def begin(
    candidates: Sequence[Candidate], groups: Sequence[dict[str, Any]]
) -> list[bool]:
    """Set the scale of every candidate whose gradient is finite and not all zero.

    A block without entries begins too, with scale 1. All gradients are measured before
    anything is written, with one host synchronisation, and one more for each process
    group that shards a block; nothing is written when this raises.

    Args:
        candidates: blocks without a running momentum, the same on all ranks.
        groups: all param groups of the optimizer.

    Returns:
        For each candidate, whether it begins: the same on all ranks.

    Raises:
        ValueError: a scaling rule returns a scale that is not positive and finite, or
            not one scale per block.
    """
    moments = measure_blocks([c.param for c in candidates])
    usable = moments.usable | _mask(_is_empty(c.param) for c in candidates)
    begun = [c for c, begins in zip(candidates, usable.tolist(), strict=True) if begins]
    values = _scales(begun, moments.select(usable))
    largest = _divide_by_largest(begun, values, groups)
    _check(values)
    for candidate, value in zip(begun, values.tolist(), strict=True):
        candidate.scale.fill_(value)
    for group in groups:
        if group["scaling"] == "gsnr_max":
            group["gsnr_max"] = largest
    return usable.tolist()


def held_largest(groups: Iterable[Mapping[str, Any]]) -> float:
    """Return the divisor of `"gsnr_max"`, which all groups share.

    Args:
        groups: param groups.

    Returns:
        The largest g-SNR of the first calibration, 0 before it.
    """
    return max((group.get("gsnr_max", 0.0) for group in groups), default=0.0)


def _awaits_largest(groups: Sequence[dict[str, Any]]) -> bool:
    """Tell whether `"gsnr_max"` lacks its divisor, which all ranks find together."""
    asked = any(group["scaling"] == "gsnr_max" for group in groups)
    return asked and held_largest(groups) == 0


def _scales(candidates: Sequence[Candidate], moments: Moments) -> Tensor:
    """Return the preset scales, and those of the groups' rules for the others."""
    presets = [c.preset for c in candidates]
    values = torch.tensor(presets, dtype=torch.float64, device="cpu")
    for group in {id(c.group): c.group for c in candidates}.values():
        rows = _mask(c.group is group and c.preset == 0 for c in candidates)
        if rows.any():
            rule, eps = group["scaling"], group["eps"]
            values[rows] = scales(rule, moments.select(rows), eps)
    return values


def _divide_by_largest(
    candidates: Sequence[Candidate], values: Tensor, groups: Sequence[dict[str, Any]]
) -> float:
    """Divide the scales of `"gsnr_max"` in place by the first calibration's largest.

    Returns:
        That largest g-SNR, 0 before the first calibration.
    """
    rows = _mask(c.group["scaling"] == "gsnr_max" and c.preset == 0 for c in candidates)
    largest = held_largest(groups)
    if _awaits_largest(groups):
        here = values[rows].max().item() if rows.any() else 0.0
        largest = largest_over_ranks(here)
    if rows.any():
        values[rows] /= largest
    return largest


def _is_empty(param: Tensor) -> bool:
    return param.numel() == 0 and not is_slice(param)


def _mask(rows: Iterable[bool]) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.bool, device="cpu")


def _check(values: Tensor) -> None:
    held = values.to(torch.float32)
    wrong = values[~(held.isfinite() & (held > 0))]
    if len(wrong) > 0:
        raise ValueError(
            "scaling must return positive and finite scales in the range of float32, "
            f"got {wrong[0].item()}"
        )
