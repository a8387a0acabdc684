"""Which entries of a block live on this rank, and merging statistics over ranks.

A block is a parameter as the model sees it. A rank may hold a part of it: a shard of a
DTensor (FSDP2, HSDP, tensor parallel and their combinations), or a slice that FSDP1
keeps of an original parameter. Statistics are those of the whole block, merged with one
collective for each process group that shards any of the blocks; the update is
elementwise and runs on the local entries.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from saiopt.scaling import Axis, Moments, matrix_shape, measure
from saiopt.scaling.moments import merge

from .fsdp1 import slice_start, slicing_group

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class _Shards(NamedTuple):
    """Say over which ranks a block's parts lie, and where its collective runs.

    Args:
        group: the ranks.
        device: of what they send.
        dim: the dimension that they share, None for slices.
    """

    group: dist.ProcessGroup
    device: torch.device
    dim: int | None


class Place(NamedTuple):
    """Say where a rank's part of a block lies in the whole.

    Args:
        start: index of its first entry in the whole block.
        pitch: from the index of an entry to that of its neighbour in the next row.
    """

    start: int
    pitch: int


def place_of(param: Tensor) -> Place:
    """Tell where this rank's part of a parameter lies in the whole.

    Args:
        param: the parameter.

    Returns:
        Its place. Parts that are cut along the third dimension or a later one have no
        pitch in the whole. They are counted part by part instead of row by row, so
        that no two entries of the whole have the same index.
    """
    if not is_dtensor(param):
        return Place(slice_start(param), matrix_shape(param.shape)[1])
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    # It makes tensors on the user's default device, and reads them.
    with torch.device("cpu"):
        here, offsets = compute_local_shape_and_global_offset(
            param.shape, param.device_mesh, param.placements
        )
    by_part = any(_dim(p) > 1 for p in param.placements)
    start, outer = 0, 1
    for dim, offset in enumerate(offsets):
        start += outer * offset * math.prod(param.shape[dim + 1 :])
        outer *= here[dim] if by_part else 1
    return Place(start, matrix_shape(here if by_part else param.shape)[1])


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


def whole_entries(tensor: Tensor) -> Tensor:
    """Return all entries of a tensor.

    Args:
        tensor: any tensor.

    Returns:
        What the ranks have of a DTensor, gathered on each; other tensors themselves.
    """
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Write what lives here of a whole tensor.

    Args:
        target: perhaps a DTensor, changed in place.
        whole: of its shape, the same on all ranks.
    """
    if is_dtensor(target):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements
        here = whole.to(target.device)
        whole = distribute_tensor(here, mesh, placements, src_data_rank=None)
    local_entries(target).copy_(local_entries(whole))


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


def zero_vector(param: Tensor, axis: Axis, dtype: torch.dtype) -> Tensor:
    """Return a zero for each row or column of a parameter, distributed as those are.

    Args:
        param: the parameter.
        axis: `"row"` or `"column"`.
        dtype: of the zeros.

    Returns:
        Shape (rows,) or (columns,); of a DTensor a DTensor, sharded over the ranks
        that share the axis and replicated over the others.

    Raises:
        RuntimeError: ranks have parts of the parameter that are not whole rows or
            columns.
    """
    rows, cols = matrix_shape(param.shape)
    size = rows if axis == "row" else cols
    if slicing_group(param) is not None:
        raise RuntimeError(
            "scaling must give one scale per block under FullyShardedDataParallel, "
            "whose slices have no rows and columns: use fully_shard"
        )
    if not is_dtensor(param):
        return torch.zeros(size, dtype=dtype, device=param.device)
    from torch.distributed.tensor import Replicate, Shard

    if any(_dim(p) > 1 or (_dim(p) == 1 and param.dim() > 2) for p in param.placements):
        raise RuntimeError(
            "scaling must give one scale per block where a parameter of more than two "
            f"dimensions is sharded along its columns, got {param.placements}"
        )
    axis_dim = 0 if axis == "row" else 1
    local = param.to_local()
    here = matrix_shape(local.shape)[axis_dim]
    placements = [
        # Strided shards keep their order: it says which rows a rank has.
        (p if axis_dim == 0 else Shard(0)) if _dim(p) == axis_dim else Replicate()
        for p in param.placements
    ]
    return type(param).from_local(
        torch.zeros(here, dtype=dtype, device=local.device),
        param.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size([size]),
        stride=(1,),
    )


def _dim(placement: object) -> int:
    return getattr(placement, "dim", -1)


def lie_alike(tensor: Tensor, param: Tensor) -> bool:
    """Tell whether a tensor is distributed over the ranks as a parameter is.

    Args:
        tensor: of the parameter's shape, or in proportion to it; one of a row's or a
            column's numbers of one dimension.
        param: the parameter.

    Returns:
        True where the local entries of both belong together.
    """
    if not (is_dtensor(tensor) and is_dtensor(param)):
        return is_dtensor(tensor) == is_dtensor(param)
    is_vector = tensor.dim() == 1 < param.dim()
    if tensor.placements != param.placements and not is_vector:
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
            stages.setdefault(shards._replace(dim=None), []).append(i)
    for shards, rows in stages.items():
        chosen = torch.tensor(rows, device="cpu")
        moments = _merge_over_ranks(moments, chosen, shards)
    return moments


def add_over_ranks(params: Sequence[Tensor], sums: Sequence[dict[str, Tensor]]) -> None:
    """Complete sums over blocks, rows and columns, with one collective per group.

    Args:
        params: parameters, the same in the same order on every rank that shares one.
        sums: of each, float64: `"block"`, and `"row"` and `"column"` where there are
            such; what lives here, changed in place into that of the whole.
    """
    stages: dict[_Shards, list[Tensor]] = {}
    for param, parts in zip(params, sums, strict=True):
        for shards in _shards(param):
            # A rank has whole rows unless ranks share the columns, and vice versa.
            shared = {0: ("block", "column"), None: ("block",)}
            for key in shared.get(shards.dim, ("block", "row")):
                if key in parts:
                    bare = shards._replace(dim=None)
                    stages.setdefault(bare, []).append(parts[key])
    for shards, tensors in stages.items():
        flat = torch.cat([t.reshape(-1) for t in tensors]).to(shards.device)
        dist.all_reduce(flat, group=shards.group)
        pieces = flat.split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def checksums(params: Sequence[Tensor]) -> list[int]:
    """Return a number for the bits of each whole parameter, the same on every layout.

    Args:
        params: parameters, the same in the same order on every rank that shares one.

    Returns:
        The sum over all entries of their bits, as an integer of their width, and of an
        odd number, which tells zeros of different sizes apart; modulo 2^32. One host
        synchronisation for each device, and one collective for each process group that
        shares any.
    """
    sums = [{"block": _sum_of_bits(local_entries(p))} for p in params]
    add_over_ranks(params, sums)
    found = [0] * len(params)
    for device in {part["block"].device for part in sums}:
        rows = [i for i, part in enumerate(sums) if part["block"].device == device]
        values = torch.stack([sums[i]["block"] for i in rows]).tolist()
        for i, value in zip(rows, values, strict=True):
            found[i] = value % 2**32
    return found


def _sum_of_bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().view(integers[tensor.element_size()])
    return bits.sum(dtype=torch.int64) + 0x9E3779B1 * tensor.numel() % 2**32


def largest_over_ranks(value: float) -> float:
    """Return the largest value over the ranks of the default process group.

    Args:
        value: this rank's value.

    Returns:
        The maximum, or the value itself in a single process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=_device_of(None))
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def largest_over_slices(params: Sequence[Tensor], values: Tensor) -> Tensor:
    """Return the largest of each number over the ranks that FSDP1 sliced a block for.

    Args:
        params: slices, the same in the same order on every rank that has one.
        values: this rank's numbers, on the CPU, shape (num_params, num_numbers).

    Returns:
        The largest, of the same shape; one collective for each process group.
    """
    largest = values.clone()
    stages: dict[_Shards, list[int]] = {}
    for i, param in enumerate(params):
        for shards in _shards(param):
            stages.setdefault(shards, []).append(i)
    for shards, rows in stages.items():
        part = values[rows].to(shards.device)
        dist.all_reduce(part, dist.ReduceOp.MAX, group=shards.group)
        largest[rows] = part.to(largest.device)
    return largest


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
    return () if group is None else (_Shards(group, _device_of(group), None),)


def _device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Return where ranks of a group, by default all, can exchange numbers.

    Parameters that are offloaded lie elsewhere.
    """
    return torch.device(dist.distributed_c10d._get_object_coll_device(group))


def _dtensor_shards(param: DTensor) -> Iterator[_Shards]:
    mesh = param.device_mesh
    for axis, placement in enumerate(param.placements):
        if not placement.is_replicate() and mesh.size(axis) > 1:
            device = torch.device(mesh.device_type)
            yield _Shards(mesh.get_group(axis), device, _dim(placement))
