"""Rounding to fewer bits without losing what is smaller than a spacing."""

from __future__ import annotations

import torch
from torch import Tensor

# 2³² over the golden ratio, odd: neighbours are far from each other.
_GOLDEN = 0x9E3779B1
_MULTIPLIER = 0x7FEB352D


def round_stochastically(target: Tensor, source: Tensor, noise: Tensor) -> None:
    """Store float32 values in bfloat16, rounding up with the probability of the rest.

    A value between two neighbours of bfloat16 goes to the upper one with probability
    (value - lower) / spacing, so that the expectation of the stored value is the value.
    Infinities and NaN are kept.

    Args:
        target: bfloat16 tensor to overwrite.
        source: float32 values of the same shape.
        noise: int32, uniform over 0 … 2¹⁶-1, same shape.

    Example:
        >>> target = torch.zeros(1, dtype=torch.bfloat16)
        >>> round_stochastically(target, torch.tensor([1.5]), torch.tensor([65535]))
        >>> target.item()
        1.5
    """
    bits = source.contiguous().view(torch.int32)
    # bfloat16 is the upper half of float32: a carry out of the lower half rounds up.
    rounded = (bits + noise.to(torch.int32)) >> 16
    upper = torch.where(source.isfinite(), rounded, _quiet(bits) >> 16)
    target.copy_(upper.to(torch.int16).view(torch.bfloat16))


def noise_bits(
    start: int, count: int | tuple[int, int], seed: Tensor, pitch: int = 0
) -> Tensor:
    """Return 32 pseudo-random bits for each of some entries of a block.

    The bits are a hash of the entry's index and the seed: the same on every device,
    in every execution and however a block is cut up, and no generator's state has to
    be saved.

    Args:
        start: index of the first entry within its block.
        count: number of consecutive entries, or (rows, columns) of them.
        seed: 0-d int32 tensor on the device of the entries.
        pitch: from the index of an entry to that of its neighbour in the next row.

    Returns:
        int32, shape (count,) or (rows × columns,).

    Example:
        >>> noise_bits(0, 3, torch.tensor(7, dtype=torch.int32)).dtype
        torch.int32
    """
    return _mix(_indices(start, count, seed, pitch) ^ _mix(seed))


def dither_bits(
    start: int, count: int | tuple[int, int], seed: Tensor, pitch: int = 0
) -> Tensor:
    """Return 16 pseudo-random bits for each of some entries of a block.

    They cost half of :func:`noise_bits`, since a step needs those of two seeds.

    Args:
        start: as there.
        count: as there.
        seed: as there.
        pitch: as there.

    Returns:
        int32, 0 … 2¹⁶-1, shape (count,) or (rows × columns,).

    Example:
        >>> dither_bits(0, 3, torch.tensor(7, dtype=torch.int32)).max() < 2**16
        tensor(True)
    """
    bits = _indices(start, count, seed, pitch) * (_GOLDEN - 2**32) ^ _mix(seed)
    return high_half((bits ^ high_half(bits)) * _MULTIPLIER)


def _indices(
    start: int, count: int | tuple[int, int], seed: Tensor, pitch: int
) -> Tensor:
    rows, cols = count if isinstance(count, tuple) else (1, count)
    index = torch.arange(start, start + cols, device=seed.device)
    if rows > 1:
        lines = torch.arange(rows, device=seed.device) * pitch
        index = (lines[:, None] + index).view(-1)
    return index.to(torch.int32)


def low_half(bits: Tensor) -> Tensor:
    """Return the lower 16 of 32 bits as int32, 0 … 2¹⁶-1."""
    return bits & 0xFFFF


def high_half(bits: Tensor) -> Tensor:
    """Return the upper 16 of 32 bits as int32, 0 … 2¹⁶-1."""
    return (bits >> 16) & 0xFFFF


def _mix(bits: Tensor) -> Tensor:
    """Scramble int32 values by a bijection in which each input bit reaches all others.

    The multipliers are those of C. Wellons' "lowbias32" (2018); int32 products wrap,
    and the masks make the arithmetic shifts logical.
    """
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _MULTIPLIER
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return bits ^ ((bits >> 16) & 0xFFFF)


def _quiet(bits: Tensor) -> Tensor:
    """Set the top mantissa bit of NaN, which truncation could turn into infinity."""
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return torch.where(is_nan, bits | 0x00400000, bits)
