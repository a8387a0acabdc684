"""Whole matrices whose parts lie on several ranks: who has what, and sending it.

Each matrix has one owner, a rank that has a part of it. The parts go to the owner,
which does something to the whole, and back to every rank that has one: two collectives
for many matrices together, of the group of all ranks that share them. A part that
several ranks have, as replicas do, goes there from one of them and back to all.

A matrix of n entries that lies in S parts, each on R ranks, sends n (S-1)/S entries
there and n (R - 1/S) back.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from saiopt.scaling import matrix_shape

from .shards import checksums, is_dtensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


class Box(NamedTuple):
    """Hold a part of a tensor: the first index and the size in each dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the number of its entries."""
        return math.prod(self.shape)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part as a view."""
        pairs = zip(self.offset, self.shape, strict=True)
        return tensor[tuple(slice(first, first + size) for first, size in pairs)]


@dataclass(frozen=True)
class Spread:
    """Say how the matrices of a parameter lie over ranks.

    Args:
        group: the ranks.
        device: where they exchange tensors.
        shape: of the parameter, after a first dimension that counts its matrices.
        boxes: what each rank of the group has of it.
    """

    group: dist.ProcessGroup
    device: torch.device
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Return the rows and columns of each matrix."""
        return matrix_shape(self.shape[1:])

    def parts(self, index: int) -> dict[int, Box]:
        """Return what the ranks have that have a part of a matrix."""
        return {
            rank: Box(box.offset[1:], box.shape[1:])
            for rank, box in enumerate(self.boxes)
            if box.numel > 0 and 0 <= index - box.offset[0] < box.shape[0]
        }

    @property
    def cost(self) -> int:
        """Return the work of each matrix: rows · columns · min(rows, columns)."""
        rows, cols = self.matrix_shape
        return rows * cols * min(rows, cols)

    @property
    def here(self) -> Box:
        """Return what this rank has."""
        return self.boxes[dist.get_rank(self.group)]


def spread_of(param: Tensor, *, stacked: bool, replicated: bool) -> Spread | None:
    """Tell how the matrices of a parameter lie over ranks.

    Args:
        param: the parameter.
        stacked: whether its first dimension counts matrices.
        replicated: whether a tensor that is no DTensor is the same on all ranks of the
            default process group.

    Returns:
        None where no other rank has any of it, as far as can be known.

    Raises:
        RuntimeError: a rank has rows that are not neighbours.
    """
    extra = () if stacked else (1,)
    shape = (*extra, *param.shape)
    if param.numel() == 0:
        return None
    if is_dtensor(param):
        if param.device_mesh.size() == 1:
            return None
        group = _group_of(param)
        boxes = _boxes_of(param, dist.get_process_group_ranks(group), extra)
        device = torch.device(param.device_mesh.device_type)
        return Spread(group, device, shape, boxes)
    if not (replicated and dist.is_available() and dist.is_initialized()):
        return None
    world = dist.get_world_size()
    whole = Box((0,) * len(shape), shape)
    group = dist.distributed_c10d._get_default_group()
    return Spread(group, param.device, shape, (whole,) * world) if world > 1 else None


def owners(spreads: Sequence[Spread]) -> list[tuple[int, ...]]:
    """Choose the owner of each matrix, so that all do about the same work.

    The work is rows · columns · min(rows, columns). The dearest first, each goes to the
    rank with the least so far, of those that have the whole if there are any, and else
    of those that have a part (Graham 1969, longest processing time first).

    Args:
        spreads: of parameters over the same group, the same on all its ranks.

    Returns:
        The ranks in the group that own the matrices of each parameter.
    """
    candidates = {
        (i, index): _candidates(spread, index)
        for i, spread in enumerate(spreads)
        for index in range(spread.shape[0])
    }
    loads = [0] * len(spreads[0].boxes)
    found = [[0] * spread.shape[0] for spread in spreads]
    # First those that have no choice.
    order = sorted(
        candidates, key=lambda m: (len(candidates[m]) > 1, -spreads[m[0]].cost)
    )
    for i, index in order:
        owner = min(candidates[i, index], key=loads.__getitem__)
        loads[owner] += spreads[i].cost
        found[i][index] = owner
    return list(map(tuple, found))


def _candidates(spread: Spread, index: int) -> list[int]:
    parts = spread.parts(index)
    whole = [rank for rank, part in parts.items() if part.shape == spread.shape[1:]]
    return whole or list(parts)


def are_equal(params: Sequence[Tensor], spread: Spread) -> bool:
    """Tell whether all ranks ask with the same parameters, bit for bit.

    Args:
        params: whole ones, as this rank has them.
        spread: of one of them.

    Returns:
        Whether they do, as far as a checksum tells, on all of them: one collective.
    """
    told = [(p.shape, s) for p, s in zip(params, checksums(params), strict=True)]
    found = zlib.crc32(repr(told).encode())
    extremes = torch.tensor([found, -found], device=spread.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=spread.group)
    largest, least = extremes.tolist()
    return largest == -least


class _Piece(NamedTuple):
    """Hold a part of a matrix that goes from one rank to another.

    Args:
        block: which parameter the matrix is of.
        number: which of its matrices.
        part: of the matrix.
    """

    block: int
    number: int
    part: Box


class _Route:
    """Know what this rank sends, receives and keeps in one direction."""

    def __init__(self, rank: int, world: int) -> None:
        self._rank = rank
        self.sent: list[list[_Piece]] = [[] for _ in range(world)]
        self.received: list[list[_Piece]] = [[] for _ in range(world)]
        self.kept: list[_Piece] = []
        # Whether any rank sends anything, which all know alike.
        self.is_used = False

    def add(self, piece: _Piece, source: int, target: int) -> None:
        """Let a piece go from one rank to another, or stay."""
        self.is_used = self.is_used or source != target
        if source == target == self._rank:
            self.kept.append(piece)
        elif source == self._rank:
            self.sent[target].append(piece)
        elif target == self._rank:
            self.received[source].append(piece)


class Exchange:
    """Send parts of some parameters to the owners of their matrices, and back.

    Args:
        spreads: of parameters over the same group, the same on all its ranks.
        owners: ranks that own the matrices of each parameter.
    """

    def __init__(
        self, spreads: Sequence[Spread], owners: Sequence[Sequence[int]]
    ) -> None:
        self._spreads = spreads
        self._group, self._device = spreads[0].group, spreads[0].device
        rank, world = dist.get_rank(self._group), len(spreads[0].boxes)
        self._there, self._back = _Route(rank, world), _Route(rank, world)
        self._owned: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for block, (spread, each) in enumerate(zip(spreads, owners, strict=True)):
            for index, owner in enumerate(each):
                if owner == rank:
                    alike = self._owned.setdefault(spread.matrix_shape, [])
                    alike.append((block, index))
                parts = spread.parts(index)
                senders = _senders(parts, owner)
                for holder, part in parts.items():
                    piece = _Piece(block, index, part)
                    if holder in senders:
                        self._there.add(piece, holder, owner)
                    self._back.add(piece, owner, holder)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Bring matrices together on their owners.

        Args:
            parts: what lives here of each parameter, contiguous, of one dtype.

        Returns:
            The matrices that this rank owns, in stacks by shape, (matrices, rows,
            columns).
        """
        stacks = [
            torch.empty(len(alike), *shape, dtype=parts[0].dtype, device=self._device)
            for shape, alike in self._owned.items()
        ]
        wholes = self._by_matrix(stacks)
        here = functools.partial(self._here, parts)
        of_whole = functools.partial(self._of_whole, wholes)
        self._carry(self._there, here, of_whole, parts[0].dtype)
        return stacks

    def scatter(
        self, stacks: Sequence[Tensor], parts: Sequence[Tensor], dtype: torch.dtype
    ) -> None:
        """Send back the parts of what has become of the matrices.

        Args:
            stacks: as :meth:`gather` returned them.
            parts: what lives here of each parameter, contiguous, overwritten.
            dtype: in which to send.
        """
        wholes = self._by_matrix(stacks)
        of_whole = functools.partial(self._of_whole, wholes)
        here = functools.partial(self._here, parts)
        self._carry(self._back, of_whole, here, dtype)

    def _by_matrix(self, stacks: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
        """Return the matrices of stacks in the dimensions of their parameters."""
        return {
            (block, index): matrix.view(self._spreads[block].shape[1:])
            for stack, alike in zip(stacks, self._owned.values(), strict=True)
            for (block, index), matrix in zip(alike, stack, strict=True)
        }

    def _here(self, parts: Sequence[Tensor], piece: _Piece) -> Tensor:
        """Return this rank's part of a matrix."""
        box = self._spreads[piece.block].here
        return parts[piece.block].view(box.shape)[piece.number - box.offset[0]]

    @staticmethod
    def _of_whole(wholes: Mapping[tuple[int, int], Tensor], piece: _Piece) -> Tensor:
        return piece.part.of(wholes[piece.block, piece.number])

    def _carry(
        self,
        route: _Route,
        source: Callable[[_Piece], Tensor],
        target: Callable[[_Piece], Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Copy the pieces of a route from where they are to where they belong."""
        _copy(map(target, route.kept), map(source, route.kept))
        if not route.is_used:
            return
        sent = [source(p).reshape(-1) for ps in route.sent for p in ps]
        flat = torch.cat(sent) if sent else torch.empty(0, device=self._device)
        flat = flat.to(self._device, dtype)
        received = [p for ps in route.received for p in ps]
        sizes = [piece.part.numel for piece in received]
        arrived = flat.new_empty(sum(sizes))
        dist.all_to_all_single(
            arrived,
            flat,
            _entries(route.received),
            _entries(route.sent),
            group=self._group,
        )
        pairs = zip(received, arrived.split(sizes), strict=True)
        _copy(map(target, received), [v.view(p.part.shape) for p, v in pairs])


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    targets, sources = list(targets), list(sources)
    if targets:
        torch._foreach_copy_(targets, sources)


def _entries(pieces: Sequence[Sequence[_Piece]]) -> list[int]:
    return [sum(piece.part.numel for piece in each) for each in pieces]


def _senders(parts: Mapping[int, Box], owner: int) -> set[int]:
    """Return the ranks whose parts make up a whole: of replicas those of the owner's.

    Ranks that have the same part are in the order of their replicas.
    """
    copies: dict[Box, list[int]] = {}
    for rank, part in parts.items():
        copies.setdefault(part, []).append(rank)
    replica = next(ranks.index(owner) for ranks in copies.values() if owner in ranks)
    return {ranks[replica] for ranks in copies.values()}


def _group_of(param: DTensor) -> dist.ProcessGroup:
    """Return the group of all ranks of a parameter's mesh."""
    mesh = param.device_mesh
    long = [axis for axis in range(mesh.ndim) if mesh.size(axis) > 1]
    if len(long) == 1:
        return mesh.get_group(long[0])
    whole = dist.distributed_c10d._get_default_group()
    ranks = tuple(sorted(mesh.mesh.flatten().tolist()))
    if len(ranks) == dist.get_world_size():
        return whole
    made = _groups.setdefault(whole, {})
    if ranks not in made:
        # Other ranks may have no parameter on this mesh, and do not take part.
        group = dist.new_group(list(ranks), use_local_synchronization=True)
        made[ranks] = cast("dist.ProcessGroup", group)
    return made[ranks]


# By the default process group, which a program may make anew, and by ranks.
_groups: WeakKeyDictionary[
    dist.ProcessGroup, dict[tuple[int, ...], dist.ProcessGroup]
] = WeakKeyDictionary()


def _boxes_of(
    param: DTensor, ranks: Sequence[int], extra: tuple[int, ...]
) -> tuple[Box, ...]:
    """Return what each rank of a mesh has of a parameter, after extra dimensions."""
    mesh = param.device_mesh
    boxes = _boxes(tuple(param.shape), tuple(mesh.shape), tuple(param.placements))
    by_rank = dict(zip(mesh.mesh.flatten().tolist(), boxes, strict=True))
    zeros = (0,) * len(extra)
    return tuple(
        Box(zeros + by_rank[r].offset, extra + by_rank[r].shape) for r in ranks
    )


@functools.lru_cache(maxsize=1024)
def _boxes(
    shape: tuple[int, ...], mesh: tuple[int, ...], placements: tuple[Placement, ...]
) -> list[Box]:
    """Return the parts of a tensor by place in a mesh, the last axis the fastest."""
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    places = itertools.product(*map(range, mesh))
    # It makes tensors on the user's default device, and reads them.
    with torch.device("cpu"):
        found = [
            _compute_local_shape_and_global_offset(shape, mesh, list(at), placements)
            for at in places
        ]
    boxes = [Box(tuple(offset), tuple(here)) for here, offset in found]
    if not all(_tile(boxes, dim, size) for dim, size in enumerate(shape)):
        raise RuntimeError(
            "scaling must not be of whole matrices where a rank has rows that are not "
            f"neighbours, got shape {shape} with {placements}"
        )
    return boxes


def _tile(boxes: Sequence[Box], dim: int, size: int) -> bool:
    """Tell whether the parts that are there follow each other in a dimension."""
    ranges = {(b.offset[dim], b.shape[dim]) for b in boxes if b.numel > 0}
    end = 0
    for first, length in sorted(ranges):
        if first != end:
            return False
        end += length
    return end == size
