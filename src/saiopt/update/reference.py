"""The update rule, written once and plainly: the specification of every execution.

    m = μ m + (1-μ) g
    θ = (1 - ηλ) θ ;  θ = θ - η s m

A float32 block takes three passes over memory, 32 bytes per entry: m and g are read and
m written, θ is read and written, then θ and m are read and θ written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saiopt.low_bit import high_half, low_half, noise_bits, round_stochastically

from .blocks import Block, Coefficients

# Entries that pass through float32 copies at a time.
_CHUNK = 2**20


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to every block, one after the other.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
    """
    for block in blocks:
        step_size = coefficients.lr * block.scale.to(_arithmetic_dtype(block.param))
        if computes_in_place(block):
            _apply(
                block.param, block.grad, block.momentum_buffer, step_size, coefficients
            )
        else:
            _apply_through_copies(block, step_size, coefficients)


def decay(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply θ = (1 - ηλ) θ alone, for blocks that are not calibrated yet.

    Args:
        blocks: the tensors; only the parameters change.
        coefficients: the numbers that the blocks share.
    """
    if coefficients.weight_decay == 0:
        return
    for block in blocks:
        if block.param.dtype in (torch.float32, torch.float64):
            block.param.mul_(coefficients.shrink)
            continue
        for start, (stored,) in _chunks(block.param):
            decayed = stored.to(torch.float32) * coefficients.shrink
            _store(stored, decayed, _noise(block, start, stored, high=False))


def advance(blocks: Sequence[Block]) -> None:
    """Give blocks that round stochastically new noise, once a step.

    Args:
        blocks: the tensors; only the rounding seeds change.
    """
    seeds = [b.rounding_seed for b in blocks if b.rounding_seed is not None]
    if seeds:
        torch._foreach_add_(seeds, 1)


def computes_in_place(block: Block) -> bool:
    """Tell whether one dtype serves for both storage and arithmetic.

    Args:
        block: the tensors.

    Returns:
        True where parameter, gradient and momentum are all float32, or all float64.
    """
    tensors = (block.param, block.grad, block.momentum_buffer)
    dtypes = {t.dtype for t in tensors if t is not None}
    return dtypes in ({torch.float32}, {torch.float64})


def _apply(
    param: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    step_size: Tensor,
    coefficients: Coefficients,
) -> None:
    """Apply the rule in place, without a temporary of the parameter's size."""
    if buffer is not None:
        grad = buffer.lerp_(grad, 1 - coefficients.momentum)
    if coefficients.weight_decay != 0:
        param.mul_(coefficients.shrink)
    param.addcmul_(grad, step_size, value=coefficients.sign)


def _apply_through_copies(
    block: Block, step_size: Tensor, coefficients: Coefficients
) -> None:
    """Apply the rule in float32, chunk by chunk, and round once at the store.

    The parameter moves by the momentum before that is rounded.
    """
    dtype = _arithmetic_dtype(block.param)
    tensors = [block.param, block.grad]
    if block.momentum_buffer is not None:
        tensors.append(block.momentum_buffer)
    for start, (param, grad, *buffers) in _chunks(*tensors, varies=step_size.dim() > 0):
        values = param.to(dtype, copy=True)
        momentum = buffers[0].to(dtype, copy=True) if buffers else None
        _apply(values, grad.to(dtype), momentum, step_size, coefficients)
        if momentum is not None:
            _store(buffers[0], momentum, _noise(block, start, buffers[0], high=True))
        _store(param, values, _noise(block, start, param, high=False))


def _arithmetic_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _chunks(
    *tensors: Tensor, varies: bool = False
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Yield (index of the first entry, views) of pieces of bounded size.

    Tensors that are not contiguous, or whose step size varies within the block, make
    one piece.
    """
    if varies or not all(t.is_contiguous() for t in tensors):
        yield 0, tensors
        return
    pieces = zip(*(t.view(-1).split(_CHUNK) for t in tensors), strict=True)
    for number, views in enumerate(pieces):
        yield number * _CHUNK, views


def _noise(block: Block, start: int, target: Tensor, *, high: bool) -> Tensor | None:
    """Return 16 random bits per entry where the target rounds stochastically.

    The two halves of one hash serve the parameter and its momentum.
    """
    if block.rounding_seed is None or target.dtype != torch.bfloat16:
        return None
    bits = noise_bits(start, target.numel(), block.rounding_seed).view(target.shape)
    return high_half(bits) if high else low_half(bits)


def _store(target: Tensor, values: Tensor, noise: Tensor | None) -> None:
    if noise is None:
        target.copy_(values)
    else:
        round_stochastically(target, values, noise)
