"""Which blocks begin or measure at a step, and what their state becomes by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saiopt.distributed.fsdp1 import is_slice
from saiopt.distributed.shards import (
    add_over_ranks,
    is_sharded,
    largest_over_ranks,
    local_entries,
    measure_blocks,
)
from saiopt.scaling import (
    Measurement,
    Moments,
    Scales,
    Sums,
    matrix_shape,
    rule_of,
    sums_of,
)

from .options import num_gradients


@dataclass(frozen=True)
class Candidate:
    """Hold a block that has not begun, or measures still.

    Args:
        param: the parameter, with a gradient on at least one of its ranks.
        grad: what lives here of its gradient, None where there is none.
        group: its param group.
        entry: its state.
        preset: the scale it was given beforehand, 0 where its gradients must tell.
        has_begun: whether its momentum runs.
        has_waited: whether an earlier gradient of it was of no use.
    """

    param: Tensor
    grad: Tensor | None
    group: dict[str, Any]
    entry: Mapping[str, Tensor]
    preset: float
    has_begun: bool
    has_waited: bool


class Finding(NamedTuple):
    """Say what a step makes of a block's state, once its update is done.

    Args:
        starts: whether the momentum starts at this step.
        values: new values by key of the state, of what lives on this rank.
        is_fixed: whether the scales stay from now on.
    """

    starts: bool
    values: dict[str, Tensor]
    is_fixed: bool


def awaits_largest(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether `"gsnr_max"` lacks its divisor, which all ranks find together.

    Args:
        groups: all param groups of the optimizer.

    Returns:
        True where a step must call :func:`find` even without candidates.
    """
    found = [g for g in groups if rule_of(g["scaling"]).needs_all_blocks]
    return bool(found) and held_largest(groups) == 0


def held_largest(groups: Iterable[Mapping[str, Any]]) -> float:
    """Return the divisor of `"gsnr_max"`, which all groups share.

    Args:
        groups: param groups.

    Returns:
        The largest g-SNR of the first calibration, 0 before it.
    """
    return max((group.get("gsnr_max", 0.0) for group in groups), default=0.0)


def find(
    candidates: Sequence[Candidate], groups: Sequence[dict[str, Any]]
) -> tuple[list[Finding | None], float]:
    """Measure the gradients of a step, and change nothing.

    A block begins whose gradient is finite and not all zero, and one without entries,
    with scale 1. The choice rests on what all ranks know: a rank whose part of a block
    is empty, or has no gradient, takes part in the block's collective. One host
    synchronisation, and one more for each process group that shards a block.

    Args:
        candidates: the same on all ranks that share them.
        groups: all param groups of the optimizer.

    Returns:
        What is found of each candidate, None where its gradient is of no use, the
        same on all ranks; and the divisor of `"gsnr_max"`.

    Raises:
        ValueError: a scaling rule returns scales that are not positive and finite, or
            not of the right shape.
    """
    useless = _useless_at_a_glance(candidates)
    measured = [c for i, c in enumerate(candidates) if i not in useless]
    if not measured and not awaits_largest(groups):
        return [None] * len(candidates), held_largest(groups)
    moments = measure_blocks([c.param for c in measured], [c.grad for c in measured])
    usable = moments.usable | _mask(_is_empty(c.param) for c in measured)
    begun = [c for c, use in zip(measured, usable.tolist(), strict=True) if use]
    values = _scales(begun, moments.select(usable))
    largest = _divide_by_largest(begun, values, groups)
    _check(values)
    found = dict(zip(map(id, begun), _findings(begun, values), strict=True))
    return [found.get(id(c)) for c in candidates], largest


def _useless_at_a_glance(candidates: Sequence[Candidate]) -> set[int]:
    """Find gradients that are all zero, or not finite, among those of late blocks.

    Blocks that wait for ever shall cost little. What has never waited is measured
    anyway, and all ranks must measure a sharded block alike.
    """
    glanced: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for i, candidate in enumerate(candidates):
        grad = candidate.grad
        glances = candidate.has_waited and not is_sharded(candidate.param)
        if grad is not None and grad.numel() > 0 and glances:
            glanced.setdefault((grad.device, grad.dtype), {})[i] = grad
    useless = set()
    for members in glanced.values():
        norms = torch._foreach_norm(list(members.values()), float("inf"))
        sizes = torch.stack(norms).tolist()
        pairs = zip(members, sizes, strict=True)
        useless |= {i for i, size in pairs if not 0 < size < float("inf")}
    return useless


def _findings(begun: Sequence[Candidate], values: Tensor) -> list[Finding]:
    """Return what the usable gradients make of their blocks."""
    scales = _on_devices(values, [c.param.device for c in begun])
    findings = [
        Finding(not c.has_begun, {"scale": scale}, is_fixed=True)
        for c, scale in zip(begun, scales, strict=True)
    ]
    measuring = _measuring(begun)
    sums = [_sums_here(m.candidate, m.measurement) for m in measuring.values()]
    add_over_ranks([m.candidate.param for m in measuring.values()], sums)
    for (i, each), parts in zip(measuring.items(), sums, strict=True):
        findings[i] = _finer(each, parts)
    given = [findings[i].values for i in measuring]
    _check_all([v for found in given for k, v in found.items() if k in _SCALES])
    return findings


class _Measuring(NamedTuple):
    """Hold a block that measures still, and how many gradients it has measured."""

    candidate: Candidate
    measurement: Measurement
    num_measured: int


def _measuring(begun: Sequence[Candidate]) -> dict[int, _Measuring]:
    """Return those that measure still, by their places; one transfer per device."""
    asked = {
        i: measurement
        for i, candidate in enumerate(begun)
        if (measurement := rule_of(candidate.group["scaling"]).measurement)
        and not _is_empty(candidate.param)
    }
    counts = _on_host([begun[i].entry["num_measured"] for i in asked])
    return {
        i: _Measuring(begun[i], measurement, int(count))
        for (i, measurement), count in zip(asked.items(), counts, strict=True)
        if count < num_gradients(begun[i].group)
    }


def _sums_here(candidate: Candidate, measurement: Measurement) -> dict[str, Tensor]:
    grad = candidate.grad
    if grad is None:
        grad = torch.zeros_like(local_entries(candidate.param))
    axes = measurement.axes(candidate.param.shape)
    found = sums_of(grad.reshape(matrix_shape(grad.shape)), measurement.entries, axes)
    keys = ("block", "row", "column")
    return {k: t for k, t in zip(keys, found, strict=True) if t is not None}


def _finer(measuring: _Measuring, parts: Mapping[str, Tensor]) -> Finding:
    candidate, measurement, count = measuring
    entry, count = candidate.entry, count + 1
    before = entry["block_sum"]
    sums = {"block": before + parts["block"]}
    for axis in parts.keys() - {"block"}:
        share = local_entries(entry[f"{axis}_share"])
        sums[axis] = share * before + parts[axis]
    given = measurement.scales(
        Sums(
            sums["block"],
            sums.get("row"),
            sums.get("column"),
            matrix_shape(candidate.param.shape),
            count,
        )
    )
    values = {f"{k}_share": s / sums["block"] for k, s in sums.items() if k != "block"}
    values["block_sum"] = sums["block"]
    values["num_measured"] = torch.full_like(entry["num_measured"], count)
    values |= _by_key(given, sums)
    is_fixed = count >= num_gradients(candidate.group)
    return Finding(not candidate.has_begun, values, is_fixed)


_SCALES = ("scale", "row_scale", "column_scale")


def _by_key(given: Scales, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scales by key of the state, of which none may be missing."""
    found = {"scale": given.block.to(torch.float32)}
    for axis, value in (("row", given.row), ("column", given.column)):
        shape = None if value is None else value.shape
        expected = sums[axis].shape if axis in sums else None
        if shape != expected:
            raise ValueError(
                f"scaling must return scales of the {axis}s of shape "
                f"{expected and tuple(expected)}, got {shape and tuple(shape)}"
            )
        if value is not None:
            found[f"{axis}_scale"] = value.to(torch.float32)
    return found


def _scales(candidates: Sequence[Candidate], moments: Moments) -> Tensor:
    """Return the preset scales, and those of the groups' rules for the others."""
    presets = [c.preset or float(_is_empty(c.param)) for c in candidates]
    values = torch.tensor(presets, dtype=torch.float64, device="cpu")
    for group in {id(c.group): c.group for c in candidates}.values():
        rows = _mask(c.group is group for c in candidates) & (values == 0)
        rule = rule_of(group["scaling"])
        if rows.any() and rule.scales is not None:
            values[rows] = rule.scales(moments.select(rows), group["eps"])
        elif rows.any():
            # A measurement has its own; without one nothing is scaled.
            values[rows] = 1.0
    return values


def _divide_by_largest(
    candidates: Sequence[Candidate], values: Tensor, groups: Sequence[dict[str, Any]]
) -> float:
    """Divide the scales of `"gsnr_max"` in place by the first calibration's largest.

    Returns:
        That largest g-SNR, 0 before the first calibration.
    """
    rows = _mask(
        rule_of(c.group["scaling"]).needs_all_blocks
        and c.preset == 0
        and not _is_empty(c.param)
        for c in candidates
    )
    largest = held_largest(groups)
    if awaits_largest(groups):
        here = values[rows].max().item() if rows.any() else 0.0
        largest = largest_over_ranks(here)
    if rows.any():
        values[rows] /= largest
    return largest


def _on_devices(values: Tensor, devices: Sequence[torch.device]) -> list[Tensor]:
    """Return each value as a 0-d float32 tensor, with one transfer for each device."""
    held = values.to(torch.float32)
    copies = {device: held.to(device).unbind() for device in set(devices)}
    return [copies[device][i] for i, device in enumerate(devices)]


def _is_empty(param: Tensor) -> bool:
    return param.numel() == 0 and not is_slice(param)


def _mask(rows: Iterable[bool]) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.bool, device="cpu")


def _on_host(scalars: Sequence[Tensor]) -> list[float]:
    """Read 0-d tensors, with one transfer for each device."""
    found = [0.0] * len(scalars)
    for device in {t.device for t in scalars}:
        rows = [i for i, t in enumerate(scalars) if t.device == device]
        values = torch.stack([scalars[i] for i in rows]).tolist()
        for i, value in zip(rows, values, strict=True):
            found[i] = value
    return found


def _check_all(scales: Sequence[Tensor]) -> None:
    """Check scales of any shapes, with one transfer for each device."""
    fine = _on_host([(s.isfinite() & (s > 0)).all() for s in scales])
    for scale, is_fine in zip(scales, fine, strict=True):
        if not is_fine:
            _check(scale.reshape(-1))


def _check(values: Tensor) -> None:
    held = values.to(torch.float32)
    wrong = values[~(held.isfinite() & (held > 0))]
    if len(wrong) > 0:
        raise ValueError(
            "scaling must return positive and finite scales in the range of float32, "
            f"got {wrong[0].item()}"
        )
