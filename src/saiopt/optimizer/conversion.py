"""Holding a momentum in another dtype than it was made in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saiopt.distributed.shards import local_entries, place_of
from saiopt.low_bit import dequantize, dither_bits, quantize
from saiopt.scaling import matrix_shape

from .state import (
    is_concrete,
    momentum,
    momentum_dtype,
    refuse_slices,
    rounds_stochastically,
)

_OF_MOMENTUM = ("momentum_buffer", "momentum_scale")
_CODES = (torch.int8, torch.uint8)
# Entries that are float32 between two codes at a time.
_CONVERTED_AT_ONCE = 2**20


def convert_momentum(
    entry: dict[str, Any], param: Tensor, options: Mapping[str, Any]
) -> None:
    """Hold a momentum as its group asks for it, each value as the nearest there is.

    What is held so already stays, and so does everything where the group asks for no
    dtype. A rounding seed that is not needed then is dropped: the state is that of an
    optimizer that was made so.

    Args:
        entry: the state by key, changed in place.
        param: the parameter.
        options: its group's options by name.

    Raises:
        RuntimeError: see :func:`saiopt.optimizer.state.refuse_slices`.
    """
    buffer = entry.get("momentum_buffer")
    if not isinstance(buffer, Tensor) or options["state_dtype"] is None:
        return
    refuse_slices(param, options)
    if buffer.dtype == momentum_dtype(param, options):
        return
    converted = momentum(param, options)
    _copy_values(entry, converted, param)
    entry.pop("momentum_scale", None)
    entry.update(converted)
    if not rounds_stochastically(entry, param, options):
        entry.pop("rounding_seed", None)


def _copy_values(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], param: Tensor
) -> None:
    """Copy what lives here of a momentum into one of another form."""
    old, new = (
        [local_entries(held[key]) for key in _OF_MOMENTUM if key in held]
        for held in (source, target)
    )
    if len(old) == len(new) == 1:
        new[0].copy_(old[0])
        return
    shape = local_entries(param).shape
    rows, cols = matrix_shape(shape)
    height = max(_CONVERTED_AT_ONCE // max(cols, 1), 1)
    for first in range(0, rows if cols else 0, height):
        at = slice(first, min(first + height, rows))
        if len(old) == 2:
            codes = old[0][at].reshape(at.stop - first, -1)
            noise = _dither(source, param, at, cols)
            values = dequantize(codes, old[1][at], cols, noise)
        else:
            values = old[0][at].to(torch.float32).reshape(-1, cols)
        parts = quantize(values, new[0].dtype, None) if len(new) == 2 else [values]
        for tensor, part in zip(new, parts, strict=True):
            tensor[at].copy_(part.view(tensor[at].shape))


def _dither(
    entry: Mapping[str, Tensor], param: Tensor, rows: slice, cols: int
) -> Tensor | None:
    """Return the noise that the last step made the codes of some rows with."""
    seed = entry.get("rounding_seed")
    if seed is None:
        return None
    place, count = place_of(param), (rows.stop - rows.start, cols)
    first = place.start + rows.start * place.pitch
    return dither_bits(first, count, seed, place.pitch).view(count)


def holds_bare_codes(
    entry: Mapping[str, Any], param: Tensor, options: Mapping[str, Any]
) -> bool:
    """Tell whether a momentum consists of codes that were read as values.

    Distributed checkpoints copy what they have into the tensors that there are.

    Args:
        entry: a loaded state by key.
        param: the parameter.
        options: its group's options by name, as saved.

    Returns:
        True where a momentum in floating point has scales, or where the options ask for
        codes and all values are whole numbers that could be such.
    """
    buffer = entry.get("momentum_buffer")
    if not isinstance(buffer, Tensor) or not buffer.is_floating_point():
        return False
    if entry.get("momentum_scale") is not None:
        return True
    here = local_entries(buffer)
    if momentum_dtype(param, {"state_dtype": None, **options}) not in _CODES:
        return False
    if not is_concrete(here) or not here.any():
        return False
    return bool(((here == here.round()) & (here.abs() <= 128)).all())
