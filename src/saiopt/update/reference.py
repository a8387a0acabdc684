"""The update rule, written once and plainly: the specification of every execution.

    m = μ m + (1-μ) g
    θ = (1 - ηλ) θ ;  θ = θ - η s ⊙ d

where d = m, or a direction of the whole matrix μ m + (1-μ) g, rounded to θ's dtype.

A float32 block takes three passes over memory, 32 bytes per entry: m and g are read and
m written, θ is read and written, then θ and m are read and θ written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saiopt.low_bit import (
    code_of,
    dequantize,
    dither_bits,
    high_half,
    low_half,
    noise_bits,
    quantize,
    round_stochastically,
)
from saiopt.scaling import matrix_shape

from .blocks import Block, Coefficients, Direction
from .tiles import Tile, tiles


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to every block, one after the other.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
    """
    for block in blocks:
        if coefficients.direction is not None:
            _apply_along(block, coefficients, coefficients.direction)
        elif computes_in_place(block):
            _apply(
                block.param,
                block.grad,
                block.momentum_buffer,
                _step_size(block, coefficients),
                coefficients,
            )
        else:
            _apply_through_copies(block, coefficients)


def decay(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply θ = (1 - ηλ) θ alone, for blocks that are not calibrated yet.

    Args:
        blocks: the tensors; only the parameters change.
        coefficients: the numbers that the blocks share.
    """
    if coefficients.weight_decay == 0:
        return
    wide = (torch.float32, torch.float64)
    in_place = [b.param for b in blocks if b.param.dtype in wide]
    if in_place:
        torch._foreach_mul_(in_place, coefficients.shrink)
    for block in blocks:
        if block.param.dtype in wide:
            continue
        for tile in tiles([block.param]):
            stored = tile.of(block.param)
            decayed = stored.to(torch.float32) * coefficients.shrink
            _store(stored, decayed, _noise(block, tile, stored))


def advance(blocks: Sequence[Block]) -> None:
    """Give blocks that round stochastically new noise, after each step.

    Args:
        blocks: the tensors; only the rounding seeds change.
    """
    seeds = [b.rounding_seed for b in blocks if b.rounding_seed is not None]
    if seeds:
        torch._foreach_add_(seeds, 1)


def average(
    buffers: list[Tensor], grads: list[Tensor], coefficients: Coefficients
) -> list[Tensor]:
    """Apply m = μ m + (1-μ) g, where μ = 0 forgets even what is not finite.

    Args:
        buffers: m, changed in place.
        grads: g, of the same dtypes.
        coefficients: with μ.

    Returns:
        m.
    """
    if coefficients.momentum == 0:
        torch._foreach_copy_(buffers, grads)
    else:
        torch._foreach_lerp_(buffers, grads, 1 - coefficients.momentum)
    return buffers


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
        grad = average([buffer], [grad], coefficients)[0]
    if coefficients.weight_decay != 0:
        param.mul_(coefficients.shrink)
    param.addcmul_(grad, step_size, value=coefficients.signed_multiplier)


def _step_size(
    block: Block, coefficients: Coefficients, tile: Tile | None = None
) -> Tensor:
    """Return η s: 0-d, or broadcasting against a tile of the parameter."""
    dtype = arithmetic_dtype(block.param)
    step_size = coefficients.lr * block.scale.to(dtype)
    shape = block.shape if tile and tile.splits_rows else block.param.shape
    if block.row_scale is not None:
        rows = block.row_scale if tile is None else block.row_scale[tile.rows]
        step_size = step_size * rows.to(dtype).view(-1, *[1] * (len(shape) - 1))
    if block.column_scale is not None:
        columns = block.column_scale.to(dtype)
        if tile and tile.splits_rows:
            step_size = step_size * columns[None, tile.cols]
        else:
            step_size = step_size * columns.view(1, *shape[1:])
    return step_size


def _apply_through_copies(block: Block, coefficients: Coefficients) -> None:
    """Apply the rule in float32, tile by tile, and round once at the store.

    The parameter moves by the momentum before that is rounded.
    """
    dtype = arithmetic_dtype(block.param)
    tensors = [block.param, block.grad]
    if block.momentum_buffer is not None and block.momentum_scale is None:
        tensors.append(block.momentum_buffer)
    for tile in tiles(tensors):
        param = tile.of(block.param)
        values = param.to(dtype, copy=True)
        momentum = _read_momentum(block, tile, values)
        _apply(
            values,
            tile.of(block.grad).to(dtype),
            momentum,
            _step_size(block, coefficients, tile),
            coefficients,
        )
        noise = _noise(block, tile, param)
        if momentum is not None:
            _write_momentum(block, tile, momentum, noise)
        _store(param, values, noise)


def _apply_along(
    block: Block, coefficients: Coefficients, direction: Direction
) -> None:
    """Apply the rule along a direction that the whole matrix decides.

    It takes float32 copies of the parameter's size, freed from block to block.
    """
    if block.param.numel() == 0:
        return
    shape = matrices(block.param.shape, stacked=coefficients.stacked)
    along = direction(look_ahead(block, coefficients).reshape(shape))
    values = block.param.to(arithmetic_dtype(block.param), copy=True)
    if coefficients.weight_decay != 0:
        values.mul_(coefficients.shrink)
    values.addcmul_(
        along.view(block.param.shape).to(block.param.dtype).to(values.dtype),
        _step_size(block, coefficients),
        value=coefficients.signed_multiplier,
    )
    _store(block.param, values, _noise(block, _whole(block), values))


def look_ahead(block: Block, coefficients: Coefficients) -> Tensor:
    """Apply m = μ m + (1-μ) g, and return μ m + (1-μ) g of that m before it is rounded.

    Args:
        block: the tensors; only the momentum buffer changes.
        coefficients: the numbers that the blocks share.

    Returns:
        A new tensor of the parameter's shape, float32 or float64; g where μ = 0.
    """
    grad = block.grad.to(arithmetic_dtype(block.param), copy=True)
    momentum = _read_momentum(block, _whole(block), grad)
    if momentum is None:
        return grad
    average([momentum], [grad], coefficients)
    noise = _noise(block, _whole(block), momentum)
    _write_momentum(block, _whole(block), momentum, noise)
    if coefficients.momentum == 0:
        return grad
    return grad.lerp_(momentum, coefficients.momentum)


def matrices(shape: Sequence[int], *, stacked: bool) -> tuple[int, int, int]:
    """Return how many matrices a block is, and their rows and columns.

    Args:
        shape: of the parameter.
        stacked: whether its first dimension counts them.

    Returns:
        (matrices, rows, columns).
    """
    if stacked:
        return (shape[0], *matrix_shape(shape[1:]))
    return (1, *matrix_shape(shape))


def arithmetic_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype in which a parameter's steps are computed.

    Args:
        param: the parameter.

    Returns:
        torch.float64 for its own kind, else torch.float32.
    """
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _whole(block: Block) -> Tile:
    rows, cols = block.shape
    return Tile(slice(0, rows), slice(0, cols), splits_rows=False)


def _read_momentum(block: Block, tile: Tile, like: Tensor) -> Tensor | None:
    """Return a copy of the tile's momentum with the shape and dtype of `like`."""
    if block.momentum_buffer is None:
        return None
    if block.momentum_scale is None:
        return tile.of(block.momentum_buffer).to(like.dtype, copy=True)
    codes, scale, cols = _coded(block.momentum_buffer, block.momentum_scale, tile)
    dither = _bits(dither_bits, block, tile, 0)
    return dequantize(codes, scale, cols, dither).view(like.shape).to(like.dtype)


def _write_momentum(
    block: Block, tile: Tile, values: Tensor, noise: Tensor | None
) -> None:
    if block.momentum_buffer is None:
        return
    if block.momentum_scale is None:
        _store(tile.of(block.momentum_buffer), values, noise, high=True)
        return
    codes, scale, cols = _coded(block.momentum_buffer, block.momentum_scale, tile)
    matrix = values.to(torch.float32).reshape(-1, cols)
    dither = _bits(dither_bits, block, tile, 1)
    new_codes, new_scale = quantize(matrix, codes.dtype, dither)
    codes.copy_(new_codes)
    scale.copy_(new_scale)


def _coded(buffer: Tensor, scale: Tensor, tile: Tile) -> tuple[Tensor, Tensor, int]:
    """Return views of the codes and the scales of a tile, and its number of columns."""
    code = code_of(buffer.dtype)
    first, last = tile.cols.start, tile.cols.stop
    per_byte = 8 // code.bits
    codes = buffer.view(matrix_shape(buffer.shape))
    return (
        codes[tile.rows, first // per_byte : -(-last // per_byte)],
        scale[tile.rows, first // code.group_size : -(-last // code.group_size)],
        last - first,
    )


def _noise(block: Block, tile: Tile, values: Tensor) -> Tensor | None:
    """Return 32 random bits per entry where results round stochastically.

    The two halves of one hash serve the parameter and its momentum in bfloat16.
    """
    bits = _bits(noise_bits, block, tile, 1)
    return None if bits is None else bits.view(values.shape)


def _bits(
    make: Callable[..., Tensor], block: Block, tile: Tile, steps: int
) -> Tensor | None:
    """Return random bits of a tile: of the last step, or of one after it."""
    if block.rounding_seed is None:
        return None
    cols = block.shape[1]
    pitch = cols if block.pitch is None else block.pitch
    start = block.start + tile.rows.start * pitch + tile.cols.start
    rows, width = tile.rows.stop - tile.rows.start, tile.cols.stop - tile.cols.start
    seed = block.rounding_seed + steps
    if rows == 1 or width == pitch:
        bits = make(start, rows * width, seed)
    else:
        bits = make(start, (rows, width), seed, pitch)
    return bits.view(rows, width)


def _store(
    target: Tensor, values: Tensor, noise: Tensor | None, *, high: bool = False
) -> None:
    if noise is None or target.dtype != torch.bfloat16:
        target.copy_(values)
        return
    half = high_half(noise) if high else low_half(noise)
    round_stochastically(target, values.to(torch.float32), half)
