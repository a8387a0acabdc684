"""The update rule along directions of whole matrices, many of one shape at a time.

    m = μ m + (1-μ) g
    θ = (1 - ηλ) θ - η s d          d = direction(μ m + (1-μ) g)

Matrices of one shape are stacked up to a bound and go through the direction together,
so that many small ones take few launches and a large one little memory: beside the
direction's own temporaries one float32 copy of a stack. The first line and what the
direction is given are an execution's look-ahead, the second line is its update without
momentum, with the direction in the gradient's place.

Of a float32 matrix a kernel moves 16 bytes per entry to look ahead, and 12 to step;
:func:`look_ahead`, in torch's operations, moves 32. What the direction moves comes on
top.
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
LookAhead = Callable[[Sequence[Block], Sequence[Tensor], Coefficients], None]


def update(
    blocks: Sequence[Block],
    coefficients: Coefficients,
    direction: Direction,
    look_ahead: LookAhead,
    finish: Update,
) -> None:
    """Apply the rule to all blocks.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
        direction: of whole matrices.
        look_ahead: advances momenta and writes what they will be, as :func:`look_ahead`
            does.
        finish: moves parameters along given directions, as an execution without
            momentum.
    """
    for bucket in _buckets(blocks, stacked=coefficients.stacked):
        # By a function, so that a stack is freed before the next is made.
        _update(bucket, coefficients, direction, look_ahead, finish)


def turn_into_directions(stack: Tensor, direction: Direction) -> None:
    """Put directions in the places of matrices, as many at a time as make one stack.

    Args:
        stack: shape (matrices, rows, columns), overwritten.
        direction: of whole matrices.
    """
    for some in stack.split(_matrices_at_once(stack[0].numel())):
        some.copy_(direction(some))


def _update(
    blocks: Sequence[Block],
    coefficients: Coefficients,
    direction: Direction,
    look_ahead: LookAhead,
    finish: Update,
) -> None:
    stack, slots = _stack(blocks, stacked=coefficients.stacked)
    look_ahead(blocks, slots, coefficients)
    del slots
    parts = direction(stack).view(len(blocks), -1).unbind()
    finish(
        [with_direction(b, part) for b, part in zip(blocks, parts, strict=True)],
        coefficients._replace(direction=None),
    )


def look_ahead(
    blocks: Sequence[Block], targets: Sequence[Tensor], coefficients: Coefficients
) -> None:
    """Apply m = μ m + (1-μ) g, and write μ m + (1-μ) g of that m before it is rounded.

    Blocks whose storage is their arithmetic share three multi-tensor launches for each
    device and dtype, 32 bytes per float32 entry; others go one by one through
    :func:`saiopt.update.reference.look_ahead` and its float32 copies.

    Args:
        blocks: the tensors; only momentum buffers change.
        targets: one for each block, of the parameter's shape, overwritten: contiguous,
            float64 for float64 parameters and else float32. They become g where μ = 0.
        coefficients: the numbers that the blocks share.
    """
    plain: list[tuple[Tensor, Tensor, Tensor]] = []
    for block, target in zip(blocks, targets, strict=True):
        momentum = block.momentum_buffer
        if momentum is not None and reference.computes_in_place(block):
            plain.append((target, block.grad, momentum))
        else:
            target.copy_(reference.look_ahead(block, coefficients))
    if not plain:
        return
    slots, grads, momenta = map(list, zip(*plain, strict=True))
    reference.average(momenta, grads, coefficients)
    torch._foreach_copy_(slots, grads)
    if coefficients.momentum != 0:
        torch._foreach_lerp_(slots, momenta, coefficients.momentum)


def _buckets(blocks: Sequence[Block], *, stacked: bool) -> Iterator[list[Block]]:
    """Yield blocks whose matrices make one stack."""
    alike: dict[tuple[object, ...], list[Block]] = defaultdict(list)
    for block in blocks:
        if block.param.numel() > 0:
            shape = reference.matrices(block.param.shape, stacked=stacked)
            dtype = reference.arithmetic_dtype(block.param)
            alike[block.param.device, dtype, shape].append(block)
    for members in alike.values():
        count = _matrices_at_once(members[0].param.numel())
        for first in range(0, len(members), count):
            yield members[first : first + count]


def _matrices_at_once(entries: int) -> int:
    return max(_STACK_ENTRIES // entries, 1)


def _stack(blocks: Sequence[Block], *, stacked: bool) -> tuple[Tensor, list[Tensor]]:
    """Return an empty stack for the blocks' matrices, and each block's part of it."""
    first = blocks[0].param
    count, *shape = reference.matrices(first.shape, stacked=stacked)
    dtype = reference.arithmetic_dtype(first)
    stack = first.new_empty(len(blocks) * count, *shape, dtype=dtype)
    parts = zip(blocks, stack.view(len(blocks), -1), strict=True)
    # Matrices of one shape may be parameters of several.
    return stack, [part.view(block.param.shape) for block, part in parts]


def with_direction(block: Block, direction: Tensor) -> Block:
    """Return a block without momentum whose gradient is a direction.

    Args:
        block: the tensors.
        direction: as many entries as the block's.

    Returns:
        What an execution without momentum moves along the direction.
    """
    grad = direction.view(block.param.shape).to(block.param.dtype)
    return block._replace(grad=grad, momentum_buffer=None, momentum_scale=None)
