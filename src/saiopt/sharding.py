"""Which entries of a block live on this rank, and merging moments over ranks.

A block is a parameter as the model sees it. A rank may hold a part of it: a shard of a
DTensor (FSDP2, HSDP, tensor parallel and their combinations), or a slice that FSDP1
keeps of an original parameter. Statistics are those of the whole block, merged with one
collective for each process group that shards any of the blocks; the update is
elementwise and runs on the local entries.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from .fsdp1 import slicing_group
from .moments import Moments, measure, merge
from .update import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class _Shards(NamedTuple):
    """Say over which ranks a block's parts lie, and where its collective runs."""

    group: dist.ProcessGroup
    device: torch.device


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is a DTensor.

    Args:
        tensor: any tensor.

    Returns:
        Whether it is.
    """
    # The class is looked up, not imported: importing it takes a second, and where
    # nobody has, no tensor is one.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_entries(tensor: Tensor) -> Tensor:
    """Return the entries of a tensor that live on this rank.

    Args:
        tensor: any tensor.

    Returns:
        The local shard of a DTensor, sharing its memory; other tensors themselves.
    """
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_grad(param: Tensor) -> Tensor | None:
    """Return the local entries of a parameter's gradient.

    A gradient that is distributed otherwise than its parameter, for instance one that
    is still a partial sum, is first brought to the parameter's placements.

    Args:
        param: the parameter.

    Returns:
        Entries that belong to `local_entries(param)`, or None without a gradient.

    Raises:
        RuntimeError: the parameter is a DTensor and its gradient is not.
    """
    grad = param.grad
    if grad is None or not is_dtensor(param):
        return grad
    if not is_dtensor(grad):
        raise RuntimeError("gradients of DTensor parameters must be DTensors")
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return grad.to_local()


def local_block(param: Tensor, grad: Tensor, entry: Mapping[str, Tensor]) -> Block:
    """Collect the local tensors of a block for its update.

    Args:
        param: the parameter.
        grad: the local entries of its gradient.
        entry: its state.

    Returns:
        Tensors that share memory with the parameter and its state.
    """
    buffer, codes_scale = entry.get("momentum_buffer"), entry.get("momentum_scale")
    return Block(
        local_entries(param),
        grad,
        None if buffer is None else local_entries(buffer),
        entry["scale"],
        entry.get("rounding_seed"),
        None if codes_scale is None else local_entries(codes_scale),
    )


def zeros_beside(param: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros of another shape that are distributed as a parameter is.

    Args:
        param: a parameter whose shards :func:`hold_whole_groups`.
        shape: the parameter's, or (rows, columns) in proportion to its rows and its
            columns, which are all other dimensions together.
        dtype: of the zeros.

    Returns:
        Contiguous zeros, a DTensor with the parameter's placements if it is one.
    """
    if not is_dtensor(param):
        return torch.zeros(shape, dtype=dtype, device=param.device)
    local = param.to_local()
    cols, local_cols = (math.prod(t.shape[1:]) for t in (param, local))
    if tuple(shape) == tuple(param.shape):
        here = local.shape
    else:
        here = (local.shape[0], shape[1] * local_cols // cols)
    zeros = torch.zeros(here, dtype=dtype, device=local.device)
    return type(param).from_local(
        zeros,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(tuple(shape), device="meta").stride(),
    )


def lie_alike(tensor: Tensor, param: Tensor) -> bool:
    """Tell whether a tensor is distributed over the ranks as a parameter is.

    Args:
        tensor: of the parameter's shape, or in proportion to it.
        param: the parameter.

    Returns:
        True where the local entries of both belong together.
    """
    if not (is_dtensor(tensor) and is_dtensor(param)):
        return is_dtensor(tensor) == is_dtensor(param)
    if tensor.placements != param.placements:
        return False
    meshes = (tensor.device_mesh, param.device_mesh)
    return meshes[0] is meshes[1] or meshes[0].shape == meshes[1].shape


def hold_whole_groups(param: Tensor, group_size: int) -> bool:
    """Tell whether no group of a row's neighbours lies on several ranks.

    Args:
        param: the parameter, of at least two dimensions.
        group_size: entries of a group.

    Returns:
        True where every rank has whole rows, or equal parts of them that consist of
        whole groups.
    """
    if not is_dtensor(param):
        return True
    parts = 1
    for mesh_dim, placement in enumerate(param.placements):
        dim = getattr(placement, "dim", 0)
        if dim > 1:
            return False
        parts *= param.device_mesh.size(mesh_dim) if dim == 1 else 1
    per_part = param.shape[1] // parts * math.prod(param.shape[2:])
    even = param.shape[1] % parts == 0
    return parts == 1 or (even and per_part % group_size == 0)


def is_sharded(param: Tensor) -> bool:
    """Tell whether parts of a block live on other ranks.

    Args:
        param: the parameter.

    Returns:
        True where its moments need a collective.
    """
    return bool(_shards(param))


def measure_blocks(
    params: Sequence[Tensor], entries: Sequence[Tensor | None] | None = None
) -> Moments:
    """Measure the gradients of whole blocks, or other tensors that lie as they do.

    Every rank that holds a part of any of the blocks must call this with the same
    blocks in the same order, also where its own part is empty or has no gradient.

    Args:
        params: parameters, whose gradients may be None on this rank.
        entries: what to measure of each, this rank's; None measures the gradients.

    Returns:
        Moments on the CPU, one entry per block, the same on all ranks that share it.
    """
    here = [local_grad(p) for p in params] if entries is None else entries
    moments = measure(
        [
            local_entries(p).new_empty(0) if values is None else values
            for p, values in zip(params, here, strict=True)
        ]
    )
    stages: dict[_Shards, list[int]] = {}
    for i, param in enumerate(params):
        for shards in _shards(param):
            stages.setdefault(shards, []).append(i)
    for shards, rows in stages.items():
        chosen = torch.tensor(rows, device="cpu")
        moments = _merge_over_ranks(moments, chosen, shards)
    return moments


def largest_over_ranks(value: float) -> float:
    """Return the largest value over the ranks of the default process group.

    Args:
        value: this rank's value.

    Returns:
        The maximum, or the value itself in a single process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    device = dist.distributed_c10d._get_pg_default_device()
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def _merge_over_ranks(moments: Moments, rows: Tensor, shards: _Shards) -> Moments:
    """Merge some of the moments with those of the other ranks: one all-gather."""
    own = torch.stack((moments.numel, moments.mean, moments.squared_deviations))[
        :, rows
    ]
    own = own.to(shards.device)
    world = dist.get_world_size(shards.group)
    gathered = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(gathered, own, group=shards.group)
    numel, mean, squared = torch.stack(gathered).cpu().unbind(1)
    owners = torch.arange(len(rows), device="cpu").repeat(world)
    parts = Moments(
        numel.reshape(-1), mean.reshape(-1), squared.reshape(-1), moments.spacing
    )
    merged = merge(owners, parts, moments.spacing[rows])
    return Moments(
        moments.numel.index_copy(0, rows, merged.numel),
        moments.mean.index_copy(0, rows, merged.mean),
        moments.squared_deviations.index_copy(0, rows, merged.squared_deviations),
        moments.spacing,
    )


def _shards(param: Tensor) -> tuple[_Shards, ...]:
    """Return the groups over which parts of a block lie, one per sharding mesh axis."""
    if is_dtensor(param):
        return tuple(_dtensor_shards(param))
    group = slicing_group(param)
    return () if group is None else (_Shards(group, param.device),)


def _dtensor_shards(param: DTensor) -> Iterator[_Shards]:
    mesh = param.device_mesh
    for axis, placement in enumerate(param.placements):
        if not placement.is_replicate() and mesh.size(axis) > 1:
            yield _Shards(mesh.get_group(axis), torch.device(mesh.device_type))
