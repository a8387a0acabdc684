"""The update rule over lists of tensors: few launches for many float32 blocks.

Two multi-tensor launches for each device and dtype, and one launch per block for the
last line, whose step size differs from block to block; 32 bytes per float32 entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from . import along, reference
from .blocks import Block, Coefficients


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to all blocks of a device and dtype together.

    Blocks whose storage is not their arithmetic, whose float32 copies must be of
    bounded size, and finer scales go through :mod:`saiopt.update.reference`.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
    """
    if coefficients.direction is not None:
        along.update(
            blocks, coefficients, coefficients.direction, along.look_ahead, update
        )
        return
    lists: dict[tuple[object, ...], list[Block]] = defaultdict(list)
    for block in blocks:
        if reference.computes_in_place(block) and not block.is_fine:
            keeps_momentum = block.momentum_buffer is not None
            key = (block.param.device, block.param.dtype, keeps_momentum)
            lists[key].append(block)
        else:
            reference.update([block], coefficients)
    for members in lists.values():
        _apply(members, coefficients)


def _apply(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    params = [b.param for b in blocks]
    grads = [b.grad for b in blocks]
    moved = [b.momentum_buffer for b in blocks if b.momentum_buffer is not None]
    if moved:
        reference.average(moved, grads, coefficients)
    if coefficients.weight_decay != 0:
        torch._foreach_mul_(params, coefficients.shrink)
    scales = [b.scale.to(b.param.dtype) for b in blocks]
    step_sizes = torch._foreach_mul(scales, coefficients.lr)
    torch._foreach_addcmul_(
        params, moved or grads, step_sizes, value=coefficients.signed_multiplier
    )
