"""Which blocks begin or measure at a step, and what their state becomes by it."""

from __future__ import annotations

import math
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
    is empty, or has no gradient, takes part in the block's collective. There is one for
    each process group that shards blocks, and one for those that measure several
    gradients, and about as many host synchronisations.

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
    plain = [c for c in measured if _measurement(c) is None]
    moments = measure_blocks([c.param for c in plain], [c.grad for c in plain])
    usable = moments.usable | _mask(_is_empty(c.param) for c in plain)
    begun = [c for c, use in zip(plain, usable.tolist(), strict=True) if use]
    values = _scales(begun, moments.select(usable))
    largest = _divide_by_largest(begun, values, groups)
    _check(values)
    found = dict(zip(map(id, begun), _findings(begun, values), strict=True))
    found |= _finer_findings([c for c in measured if _measurement(c)])
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
    """Return what usable gradients make of blocks that measure one at most."""
    scales = _on_devices(values, [c.param.device for c in begun])
    return [
        Finding(not c.has_begun, {"scale": scale}, is_fixed=True)
        for c, scale in zip(begun, scales, strict=True)
    ]


class _Measuring(NamedTuple):
    """Hold a block that may measure several gradients, and how many it has measured."""

    candidate: Candidate
    measurement: Measurement
    num_measured: int

    @property
    def is_done(self) -> bool:
        """Whether its scales are fixed: it waits for a gradient to begin with."""
        return self.num_measured >= num_gradients(self.candidate.group)


def _measurement(candidate: Candidate) -> Measurement | None:
    return rule_of(candidate.group["scaling"]).measurement


def _finer_findings(candidates: Sequence[Candidate]) -> dict[int, Finding]:
    """Return what usable gradients make of blocks, by the candidates' ids."""
    counts = _on_host([c.entry["num_measured"] for c in candidates])
    blocks = [
        _Measuring(candidate, measurement, int(count))
        for candidate, count in zip(candidates, counts, strict=True)
        if (measurement := _measurement(candidate))
    ]
    sums = list(map(_sums_here, blocks))
    add_over_ranks([c.param for c in candidates], sums)
    totals = _on_host([parts["block"] for parts in sums])
    found: dict[int, Finding] = {}
    for block, parts, total in zip(blocks, sums, totals, strict=True):
        candidate = block.candidate
        if _is_empty(candidate.param) or (block.is_done and 0 < total < math.inf):
            scale = torch.full_like(candidate.entry["scale"], candidate.preset or 1.0)
            finding = Finding(not candidate.has_begun, {"scale": scale}, is_fixed=True)
            found[id(candidate)] = finding
        elif 0 < total < math.inf:
            found[id(candidate)] = _finer(block, parts)
    given = [finding.values for finding in found.values()]
    _check_all([v for values in given for k, v in values.items() if k in _SCALES])
    return found


def _sums_here(block: _Measuring) -> dict[str, Tensor]:
    param, grad = block.candidate.param, block.candidate.grad
    if grad is None:
        grad = torch.zeros_like(local_entries(param))
    axes = () if block.is_done else block.measurement.axes(param.shape)
    matrix = grad.reshape(matrix_shape(grad.shape))
    found = sums_of(matrix, block.measurement.entries, axes)
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
