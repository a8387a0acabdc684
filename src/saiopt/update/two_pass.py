"""The update rule on CPUs without a compiler: two passes, 24 bytes per float32 entry.

    m = μ m + (1-μ) g
    θ = θ - ηs (m + λ/s θ)

torch's fused SGD without a momentum of its own, given m as its gradient, decays and
steps in one pass: a coupled decay of λ/s is the decoupled one of λ. It deviates from
the reference only in rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import along, reference
from .blocks import Block, Coefficients


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to every block, one after the other.

    Blocks whose storage is not their arithmetic, whose tensors are not contiguous, or
    whose scale varies within them go through :mod:`saiopt.update.reference`; under
    torch.compile everything does, since the scales are read on the host.

    Args:
        blocks: the tensors on a CPU; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
    """
    if coefficients.direction is not None:
        along.update(
            blocks, coefficients, coefficients.direction, along.look_ahead, update
        )
        return
    if torch.compiler.is_compiling():
        reference.update(blocks, coefficients)
        return
    lr = float(coefficients.lr)
    for block in blocks:
        if _knows(block):
            _apply(block, block.scale.item(), lr, coefficients)
        else:
            reference.update([block], coefficients)


def _knows(block: Block) -> bool:
    # torch's fused SGD reads tensors as if they were contiguous and not negated.
    tensors = (block.param, block.grad, block.momentum_buffer)
    plain = all(t.is_contiguous() and not t.is_neg() for t in tensors if t is not None)
    return plain and not block.is_fine and reference.computes_in_place(block)


def _apply(block: Block, scale: float, lr: float, coefficients: Coefficients) -> None:
    momentum = block.grad
    if block.momentum_buffer is not None:
        momentum = block.momentum_buffer
        reference.average([momentum], [block.grad], coefficients)
    scale *= coefficients.lr_multiplier
    torch._fused_sgd_(
        [block.param],
        [momentum],
        [],
        weight_decay=coefficients.weight_decay / scale,
        momentum=0.0,
        lr=lr * scale,
        dampening=0.0,
        nesterov=False,
        maximize=coefficients.maximize,
        is_first_step=False,
    )
    # Which that operator does not tell autograd.
    torch.autograd.graph.increment_version(block.param)
