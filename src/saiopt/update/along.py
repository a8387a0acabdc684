"""The update rule along directions of whole matrices, many of one shape at a time.

    m = μ m + (1-μ) g
    θ = (1 - ηλ) θ - η s d          d = direction(μ m + (1-μ) g)

Matrices of one shape are stacked up to a bound and go through the direction together,
so that many small ones take few launches and a large one little memory: beside the
direction's own temporaries one float32 copy of a stack. The last line is that of an
execution without momentum, with the direction in the gradient's place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from . import reference
from .blocks import Block, Coefficients, Direction

# Entries of a stack, unless one matrix has more.
_STACK_ENTRIES = 2**20

Update = Callable[[Sequence[Block], Coefficients], None]


def update(
    blocks: Sequence[Block],
    coefficients: Coefficients,
    direction: Direction,
    finish: Update,
) -> None:
    """Apply the rule to all blocks.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
        direction: of whole matrices.
        finish: moves parameters along given directions, as an execution without
            momentum.
    """
    last = coefficients._replace(direction=None)
    for bucket in _buckets(blocks, stacked=coefficients.stacked):
        stack = direction(_look_ahead(bucket, coefficients))
        parts = stack.view(len(bucket), -1).unbind()
        finish(
            [_along(b, part) for b, part in zip(bucket, parts, strict=True)],
            last,
        )


def _buckets(blocks: Sequence[Block], *, stacked: bool) -> Iterator[list[Block]]:
    """Yield blocks whose matrices make one stack."""
    alike: dict[tuple[object, ...], list[Block]] = defaultdict(list)
    for block in blocks:
        if block.param.numel() > 0:
            shape = reference.matrices(block.param.shape, stacked=stacked)
            dtype = reference.arithmetic_dtype(block.param)
            alike[block.param.device, dtype, shape].append(block)
    for members in alike.values():
        count = max(_STACK_ENTRIES // members[0].param.numel(), 1)
        for first in range(0, len(members), count):
            yield members[first : first + count]


def _look_ahead(blocks: Sequence[Block], coefficients: Coefficients) -> Tensor:
    """Advance the momenta; return the stack of μ m + (1-μ) g."""
    first = blocks[0].param
    count, *shape = reference.matrices(first.shape, stacked=coefficients.stacked)
    dtype = reference.arithmetic_dtype(first)
    stack = first.new_empty(len(blocks) * count, *shape, dtype=dtype)
    plain: list[tuple[Tensor, Tensor, Tensor]] = []
    parts = stack.view(len(blocks), -1).unbind()
    for block, part in zip(blocks, parts, strict=True):
        # Matrices of one shape may be parameters of several.
        slot, momentum = part.view(block.param.shape), block.momentum_buffer
        if momentum is not None and reference.computes_in_place(block):
            plain.append((slot, block.grad, momentum))
        else:
            slot.copy_(reference.look_ahead(block, coefficients))
    if plain:
        slots, grads, momenta = map(list, zip(*plain, strict=True))
        reference.average(momenta, grads, coefficients)
        torch._foreach_copy_(slots, grads)
        torch._foreach_lerp_(slots, momenta, coefficients.momentum)
    return stack


def _along(block: Block, direction: Tensor) -> Block:
    """Return a block without momentum whose gradient is the direction."""
    grad = direction.view(block.param.shape).to(block.param.dtype)
    return block._replace(grad=grad, momentum_buffer=None, momentum_scale=None)
