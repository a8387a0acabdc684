"""Codes of 8 and 4 bits for float32 values, with one scale for each group of a row.

A group is up to 32 neighbours along a row of a matrix of values. Its scale s is
bfloat16, whose range is that of float32: float16 would lose momenta below 6e-8. The
scale is rounded up, so that no code overflows, and the codes refer to the rounded one::

    s = max |m| / L(C)          C the largest code
    m ≈ sign(c) L(|c|) s        L(c) = c, or c² for square-root companding

Where results round stochastically, linear codes are dithered: noise u, uniform over
[0, 1), is added before rounding and taken off again when the code is read::

    c = ⌊m / s + u⌋             m ≈ (c - u + ½) s

The error is then independent of m, zero in the mean and of variance s²/12, half of what
rounding up with the probability of the rest has on average, and without the bias that
rounding to nearest has where a momentum changes by less than half a code. u is a hash
that whoever reads the code computes again. The scale of dithered codes is stored with
its sign set, so that both kinds can be read. Of their 2C + 2 codes 0 stands for exactly
0, and -C - 1 for what else would be code 0.

References:
    Roberts (1962), "Picture coding using pseudo-random noise": the subtractive dither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# The smallest scale. Its reciprocal is finite, and a group of zeros needs no exception.
_SMALLEST_SCALE = 2.0**-126


@dataclass(frozen=True)
class Code:
    """Describe a code.

    Args:
        bits: 8, or 4 with two codes in a byte, the entry of even column in its lower
            half.
        companded: whether codes stand for their squares, which spends them on small
            values, instead of for themselves.
        group_size: entries of a row that share a scale, even.

    Example:
        >>> Code(8).max_code, Code(4).max_code
        (127, 7)
    """

    bits: int
    companded: bool = False
    group_size: int = 32

    @property
    def max_code(self) -> int:
        """Return C, the largest code; -C is the smallest."""
        return 2 ** (self.bits - 1) - 1

    @property
    def max_level(self) -> int:
        """Return L(C), the largest magnitude in units of the scale."""
        return self.max_code**2 if self.companded else self.max_code


# By the dtype that stores it. The kernels know these; `using` puts others in place.
SHIPPED = {torch.int8: Code(8), torch.uint8: Code(4)}
_codes = dict(SHIPPED)


@contextmanager
def using(*codes: Code) -> Iterator[None]:
    """Replace the codes of 8 or of 4 bits, for studies that compare codes.

    State must be made, updated and read under the same codes. Only the reference
    execution knows other codes than the shipped ones, and the others leave such blocks
    to it.

    Args:
        codes: at most one of 8 bits and one of 4 bits.

    Yields:
        Nothing.
    """
    held = dict(_codes)
    _codes.update({torch.int8 if c.bits == 8 else torch.uint8: c for c in codes})
    try:
        yield
    finally:
        _codes.update(held)


def code_of(dtype: torch.dtype) -> Code:
    """Return the code that a buffer of this dtype holds.

    Args:
        dtype: torch.int8, or torch.uint8 for packed codes of 4 bits.

    Returns:
        The code.
    """
    return _codes[dtype]


def buffer_shape(code: Code, rows: int, cols: int) -> tuple[int, int]:
    """Return the shape of the buffer of a (rows, cols) matrix."""
    return rows, cols if code.bits == 8 else -(-cols // 2)


def scale_shape(code: Code, rows: int, cols: int) -> tuple[int, int]:
    """Return the shape of the scales of a (rows, cols) matrix."""
    return rows, -(-cols // code.group_size)


def dequantize(
    buffer: Tensor, scale: Tensor, cols: int, noise: Tensor | None = None
) -> Tensor:
    """Return the values that codes and scales stand for.

    Args:
        buffer: int8 or packed uint8 codes, :func:`buffer_shape`.
        scale: bfloat16, :func:`scale_shape`; below 0 for dithered codes.
        cols: number of columns of the values.
        noise: int32, shape (rows, cols): what dithered codes were made with. Without it
            they stand for their means over all noise.

    Returns:
        float32, shape (rows, cols).

    Example:
        >>> dequantize(torch.tensor([[0xF2]], dtype=torch.uint8), torch.ones(1, 1), 2)
        tensor([[ 2., -1.]])
    """
    code = code_of(buffer.dtype)
    codes = buffer if code.bits == 8 else _unpack(buffer)[:, :cols]
    scales = scale.to(torch.float32).repeat_interleave(code.group_size, dim=1)
    scales = scales[:, :cols]
    levels = codes.to(torch.float32)
    if code.companded:
        return (levels * levels.abs()).mul_(scales)
    dithered = (scales < 0) & (codes != 0)
    levels.masked_fill_(dithered & (codes == -code.max_code - 1), 0.0)
    if noise is not None:
        # In float32 exactly.
        levels += torch.where(dithered, 0.5 - noise * 2.0**-16, 0.0)
    return levels.mul_(scales.abs())


def quantize(
    values: Tensor, dtype: torch.dtype, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the codes and scales that stand for values.

    With noise linear codes are dithered; a magnitude between two companded levels goes
    to the upper one with probability (magnitude - lower) / (upper - lower). Without
    noise the nearer level is taken. A group with an entry that is not finite becomes
    NaN altogether.

    Args:
        values: float32, shape (rows, cols).
        dtype: of the buffer, torch.int8 or torch.uint8.
        noise: int32, uniform over 0 … 2¹⁶-1, same shape; None to round to nearest.

    Returns:
        Codes of :func:`buffer_shape` and `dtype`, and scales of :func:`scale_shape` in
        bfloat16.

    Example:
        >>> quantize(torch.tensor([[7.0, -3.6]]), torch.uint8, None)
        (tensor([[199]], dtype=torch.uint8), tensor([[1.]], dtype=torch.bfloat16))
    """
    code = code_of(dtype)
    scale = _scales(values, code)
    inverse = torch.where(scale.isfinite(), 1 / scale, 0.0)
    per_entry = inverse.repeat_interleave(code.group_size, dim=1)
    per_entry = per_entry[:, : values.shape[1]]
    if noise is None or code.companded:
        codes = _rounded(values, per_entry, code, noise)
    else:
        codes, scale = _dithered(values, per_entry, code, noise), -scale
    return codes if code.bits == 8 else _pack(codes), scale.to(torch.bfloat16)


def _rounded(
    values: Tensor, inverse: Tensor, code: Code, noise: Tensor | None
) -> Tensor:
    levels = values.abs().mul_(inverse).nan_to_num_(0.0)
    above = 0.5 if noise is None else noise.to(torch.float32) * 2.0**-16
    rounded = _round_root(levels, above) if code.companded else levels.add_(above)
    magnitudes = rounded.floor_().clamp_(max=code.max_code)
    return magnitudes.copysign_(values).to(torch.int8)


def _dithered(values: Tensor, inverse: Tensor, code: Code, noise: Tensor) -> Tensor:
    # In 2⁻¹⁶ of a code, cut off towards 0: the rest is integers, the same everywhere.
    levels = (values * inverse * 2.0**16).nan_to_num_(0.0)
    limit = code.max_code * 2.0**16
    whole = levels.clamp_(-limit, limit).to(torch.int32)
    codes = (whole + noise.to(torch.int32)) >> 16
    codes.masked_fill_(codes == 0, -code.max_code - 1)
    return codes.masked_fill_((values == 0) | (inverse == 0), 0).to(torch.int8)


def _scales(values: Tensor, code: Code) -> Tensor:
    """Return float32 scales that bfloat16 holds, NaN where a group is not finite."""
    rows, cols = values.shape
    groups = scale_shape(code, rows, cols)[1]
    padded = pad(values, (0, groups * code.group_size - cols))
    largest = padded.view(rows, groups, code.group_size).abs().amax(dim=2)
    # Adding all that bfloat16 cuts off rounds up.
    bits = (largest / code.max_level).view(torch.int32) + 0xFFFF
    scale = (bits & -0x10000).view(torch.float32).clamp_(min=_SMALLEST_SCALE)
    return torch.where(largest.isfinite(), scale, torch.nan)


def _round_root(levels: Tensor, above: Tensor | float) -> Tensor:
    """Return, before it is cut off, the code whose square is next to each level."""
    lower = levels.sqrt().floor_()
    part = (levels - lower.square()) / (2 * lower + 1)
    return lower + part.add_(above)


def _pack(codes: Tensor) -> Tensor:
    """Put two int8 codes of 4 bits in a byte."""
    pairs = pad(codes, (0, codes.shape[1] % 2)).view(codes.shape[0], -1, 2)
    return ((pairs[:, :, 0] & 15) | (pairs[:, :, 1] << 4)).view(torch.uint8)


def _unpack(buffer: Tensor) -> Tensor:
    """Return the int8 codes of 4 bits, shape (rows, 2 × columns of the buffer)."""
    signed = buffer.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=2).flatten(1)
