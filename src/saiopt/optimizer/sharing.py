"""Steps along directions of whole matrices whose parts lie on several ranks.

    m = μ m + (1-μ) g                   on every rank, of what it has
    d = direction(μ m + (1-μ) g)        of each whole matrix, on one rank
    θ = (1 - ηλ) θ - η s d              on every rank, of what it has

The matrices are dealt out once, evenly by their work. Many go together in a bucket,
with one collective to bring them to their owners and one to bring the directions back
(:mod:`saiopt.distributed.matrices`). In a bucket no rank owns more than `bucket_cap_mb`
of matrices, unless it is one parameter; beside them it has what it sends and receives,
about as much again each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saiopt.distributed.matrices import Exchange, Spread, are_equal, owners
from saiopt.distributed.shards import is_dtensor
from saiopt.update import (
    Block,
    Coefficients,
    Direction,
    Execution,
    advance,
    arithmetic_dtype,
    turn_into_directions,
    with_direction,
)


class Part(NamedTuple):
    """Hold what a step does to what lives here of a block.

    Args:
        param: the parameter.
        block: the tensors.
        execution: of the block.
        coefficients: of the step.
        direction: of whole matrices.
        bucket_bytes: bound of a bucket.
        starts: whether the momentum starts.
        has_grad: whether there is a gradient here. Without one, what lives here stays
            as it is, but is needed for the directions of what lives elsewhere.
    """

    param: Tensor
    block: Block
    execution: Execution
    coefficients: Coefficients
    direction: Direction
    bucket_bytes: int
    starts: bool
    has_grad: bool

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of what the direction is given."""
        return arithmetic_dtype(self.block.param)

    def empty(self, dtype: torch.dtype) -> Tensor:
        """Return a contiguous tensor for what lives here of the parameter."""
        here = self.block.param
        return torch.empty(here.shape, dtype=dtype, device=here.device)


class _Bucket(NamedTuple):
    """Hold what is exchanged together.

    Args:
        places: of the parts.
        exchange: between their ranks.
        dtype: in which directions are sent back.
    """

    places: Sequence[int]
    exchange: Exchange
    dtype: torch.dtype


class Sharing:
    """Own who finds the directions of an optimizer's matrices.

    Args:
        spreads: of the parameters that lie on several ranks, the same in the same order
            on all ranks that share them.
    """

    def __init__(self, spreads: Sequence[tuple[Tensor, Spread]]) -> None:
        self._spreads = {id(param): spread for param, spread in spreads}
        self._places = {id(param): i for i, (param, _) in enumerate(spreads)}
        by_group: dict[Any, list[int]] = {}
        for param, spread in spreads:
            by_group.setdefault(spread.group, []).append(id(param))
        self._owners: dict[int, tuple[int, ...]] = {}
        for members in by_group.values():
            found = owners([self._spreads[i] for i in members])
            self._owners |= dict(zip(members, found, strict=True))
        self._buckets: dict[object, list[_Bucket]] = {}

    def step(self, parts: Sequence[Part]) -> None:
        """Update blocks that begin or run.

        Where none has a gradient nothing is done: ranks must agree in that.

        Args:
            parts: the same blocks on all ranks that share them.

        Raises:
            RuntimeError: parameters that should be replicated are others elsewhere.
        """
        if not any(part.has_grad for part in parts):
            return
        self._refuse_other_params([p for p in parts if p.starts])
        parts = sorted(parts, key=lambda part: self._places[id(part.param)])
        keys = tuple(map(self._key, parts))
        if keys not in self._buckets:
            self._buckets[keys] = list(self._make_buckets(parts))
        for bucket in self._buckets[keys]:
            _step(bucket, [parts[i] for i in bucket.places])

    def _refuse_other_params(self, parts: Sequence[Part]) -> None:
        """Check, as blocks begin, what no placement says of plain tensors."""
        params = [part.param for part in parts if not is_dtensor(part.param)]
        if params and not are_equal(params, self._spreads[id(params[0])]):
            raise RuntimeError(
                "replicated must be False where ranks of the default process group "
                "have other parameters than this one, as those of pipelines and of "
                "ZeroRedundancyOptimizer, got True"
            )

    @staticmethod
    def _key(part: Part) -> tuple[object, ...]:
        dtype = part.block.param.dtype
        return (id(part.param), dtype, part.direction, part.bucket_bytes)

    def _make_buckets(self, parts: Sequence[Part]) -> Iterator[_Bucket]:
        kinds: dict[tuple[object, ...], list[int]] = {}
        for i, part in enumerate(parts):
            spread = self._spread(part)
            kind = (spread.group, spread.device, *self._key(part)[1:])
            kinds.setdefault(kind, []).append(i)
        for members in kinds.values():
            first = parts[members[0]]
            dtype = _sent_back(first, self._spread(first).device)
            for places in self._split(parts, members):
                ids = [id(parts[i].param) for i in places]
                spreads = [self._spreads[i] for i in ids]
                exchange = Exchange(spreads, [self._owners[i] for i in ids])
                yield _Bucket(places, exchange, dtype)

    def _split(
        self, parts: Sequence[Part], members: Sequence[int]
    ) -> Iterator[list[int]]:
        """Yield members that go together, the dearest first, as they were dealt out."""
        bound = parts[members[0]].bucket_bytes
        held, bucket = Counter[int](), []
        for i in sorted(members, key=lambda i: -self._spread(parts[i]).cost):
            entries = math.prod(self._spread(parts[i]).matrix_shape)
            more = Counter[int]()
            for owner in self._owners[id(parts[i].param)]:
                more[owner] += entries * parts[i].dtype.itemsize
            if bucket and any(held[owner] + more[owner] > bound for owner in more):
                yield bucket
                held, bucket = Counter[int](), []
            bucket.append(i)
            held += more
        yield bucket

    def _spread(self, part: Part) -> Spread:
        return self._spreads[id(part.param)]


def _step(bucket: _Bucket, parts: Sequence[Part]) -> None:
    stacks = bucket.exchange.gather(_look_ahead(parts))
    for stack in stacks:
        turn_into_directions(stack, parts[0].direction)
    found = [part.empty(part.block.param.dtype) for part in parts]
    bucket.exchange.scatter(stacks, found, bucket.dtype)
    del stacks
    for members in _calls(parts):
        moving = [(parts[i].block, found[i]) for i in members if parts[i].has_grad]
        blocks = [with_direction(block, along) for block, along in moving]
        first = parts[members[0]]
        first.execution.finish(blocks, first.coefficients._replace(direction=None))
    advance([part.block for part in parts if part.has_grad])


def _look_ahead(parts: Sequence[Part]) -> list[Tensor]:
    """Advance the momenta that live here, and return what directions are found of."""
    ahead = [part.empty(part.dtype) for part in parts]
    for members in _calls(parts):
        first = parts[members[0]]
        first.execution.look_ahead(
            [_advancing(parts[i]) for i in members],
            [ahead[i] for i in members],
            first.coefficients,
        )
    return ahead


def _advancing(part: Part) -> Block:
    """Return a block whose momentum may advance: a copy of one that stays here."""
    block = part.block
    if part.has_grad:
        return block
    copies = {
        key: held.clone()
        for key in ("momentum_buffer", "momentum_scale")
        if (held := getattr(block, key)) is not None
    }
    return block._replace(grad=torch.zeros_like(block.param), **copies)


def _calls(parts: Sequence[Part]) -> Iterator[list[int]]:
    """Yield the places of parts with entries that can share a call."""
    calls: dict[tuple[int, int], list[int]] = {}
    for i, part in enumerate(parts):
        if part.block.param.numel() > 0:
            key = (id(part.execution), id(part.coefficients))
            calls.setdefault(key, []).append(i)
    yield from calls.values()


def _sent_back(part: Part, device: torch.device) -> torch.dtype:
    """Return the narrower dtype of the parameter's and that of its direction."""
    found = part.direction(torch.zeros(1, 1, 1, dtype=part.dtype, device=device))
    return min(part.block.param.dtype, found.dtype, key=lambda dtype: dtype.itemsize)
