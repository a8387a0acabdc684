"""What the optimizer keeps for a parameter.

``scale``
    0-d float32. 0: not calibrated. s > 0: calibrated, the momentum runs. -s < 0: the
    scale is s already, and the next usable gradient starts the momentum.
``momentum_buffer``
    m; absent where the momentum has always been 0. Shaped like the parameter, except
    codes of 4 bits: torch.uint8 of shape (rows, ⌈columns / 2⌉), where the columns are
    the parameter's dimensions after the first.
``momentum_scale``
    bfloat16 of shape (rows, ⌈columns / 32⌉); present where m is held in 8 or 4 bits.
``rounding_seed``
    0-d int32, advances by one each step; present where results round stochastically.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fsdp1 import is_slice
from .low_bit import buffer_shape, code_of, scale_shape
from .sharding import hold_whole_groups, lie_alike, zeros_beside
from .update import matrix_shape

# Smaller blocks keep their momentum in float32, and so do those of one dimension:
# together they are hardly any memory, and they are the sensitive ones.
_SMALLEST_CODED = 4096
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CODE_DTYPES = {"int8": torch.int8, "int4": torch.uint8}


class _Form(NamedTuple):
    """Hold the shape and the dtype of a tensor, over all ranks."""

    shape: torch.Size
    dtype: torch.dtype


_SCALE = _Form(torch.Size(()), torch.float32)
_SEED = _Form(torch.Size(()), torch.int32)


def allocate(
    param: Tensor, options: Mapping[str, Any], ordinal: int
) -> dict[str, Tensor]:
    """Return the state of a parameter that has none.

    Args:
        param: the parameter.
        options: its group's options by name.
        ordinal: its place among the optimizer's parameters, which sets its noise apart.

    Returns:
        The state by key.

    Raises:
        RuntimeError: see :func:`momentum`.
    """
    state = {"scale": torch.zeros((), dtype=torch.float32, device=param.device)}
    if options["momentum"] != 0:
        state |= momentum(param, options)
    if _rounds_stochastically(param, options):
        state["rounding_seed"] = _first_seed(param, ordinal)
    return state


def lacks(
    entry: Mapping[str, Tensor], param: Tensor, options: Mapping[str, Any]
) -> bool:
    """Tell whether :func:`complete` would add anything.

    Args:
        entry: the state by key.
        param: the parameter.
        options: its group's options by name.

    Returns:
        True where the present options need more than the state has.
    """
    if options["momentum"] != 0 and "momentum_buffer" not in entry:
        return True
    return "rounding_seed" not in entry and _rounds_stochastically(param, options)


def complete(
    entry: dict[str, Tensor], param: Tensor, options: Mapping[str, Any], ordinal: int
) -> bool:
    """Add what a parameter's state lacks under the present options.

    A state_dict of the authors' class has no rounding seed, and one that was saved
    under momentum 0 no momentum.

    Args:
        entry: the state by key, changed in place.
        param: the parameter.
        options: its group's options by name.
        ordinal: its place among the optimizer's parameters.

    Returns:
        Whether the momentum was added.

    Raises:
        RuntimeError: see :func:`momentum`.
    """
    if "rounding_seed" not in entry and _rounds_stochastically(param, options):
        entry["rounding_seed"] = _first_seed(param, ordinal)
    if options["momentum"] == 0 or "momentum_buffer" in entry:
        return False
    entry.update(momentum(param, options))
    return True


def momentum(param: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a zero momentum in the group's state dtype.

    Args:
        param: the parameter.
        options: its group's options by name.

    Returns:
        `momentum_buffer`, with the parameter's strides unless it holds codes, and
        `momentum_scale` where it does.

    Raises:
        RuntimeError: codes are asked for where FSDP1 has cut the rows to pieces.
    """
    if options["state_dtype"] in _CODE_DTYPES and is_slice(param):
        raise RuntimeError(
            "state_dtype must be None, torch.float32 or torch.bfloat16 under "
            "FullyShardedDataParallel, whose slices have no rows to code, "
            f"got {options['state_dtype']}: use fully_shard"
        )
    dtype = _momentum_dtype(param, options)
    if dtype not in _CODE_DTYPES.values():
        buffer = torch.zeros_like(
            param, dtype=dtype, memory_format=torch.preserve_format
        )
        return {"momentum_buffer": buffer}
    return {
        key: zeros_beside(param, form.shape, form.dtype)
        for key, form in _momentum_forms(param, dtype).items()
    }


def misfit(entry: Mapping[str, object], param: Tensor) -> str:
    """Return why a state cannot be that of a parameter, "" if it can.

    The kernels are given addresses, and believe the parameter's size.

    Args:
        entry: the state by key.
        param: the parameter.

    Returns:
        A sentence, or "".
    """
    forms = {"scale": _SCALE}
    if "rounding_seed" in entry:
        forms["rounding_seed"] = _SEED
    buffer = entry.get("momentum_buffer")
    if isinstance(buffer, Tensor):
        forms |= _momentum_forms(param, buffer.dtype)
    for key, form in forms.items():
        held = entry.get(key)
        if not isinstance(held, Tensor):
            return f"{key} must be a tensor, got {held}"
        if (held.shape, held.dtype) != form:
            return (
                f"{key} must be {form.dtype} of shape {tuple(form.shape)} for a "
                f"parameter of shape {tuple(param.shape)}, got {held.dtype} of shape "
                f"{tuple(held.shape)}"
            )
        if key.startswith("momentum") and not lie_alike(held, param):
            return f"{key} must be distributed over the ranks as its parameter is"
    return ""


def _momentum_forms(param: Tensor, dtype: torch.dtype) -> dict[str, _Form]:
    """Return what a momentum that is held in a dtype consists of."""
    if dtype not in _CODE_DTYPES.values():
        return {"momentum_buffer": _Form(param.shape, dtype)}
    code = code_of(dtype)
    rows, cols = matrix_shape(param)
    packed = torch.Size(buffer_shape(code, rows, cols))
    scales = torch.Size(scale_shape(code, rows, cols))
    return {
        "momentum_buffer": _Form(param.shape if code.bits == 8 else packed, dtype),
        "momentum_scale": _Form(scales, torch.bfloat16),
    }


def _momentum_dtype(param: Tensor, options: Mapping[str, Any]) -> torch.dtype:
    asked = options["state_dtype"]
    if asked not in _CODE_DTYPES:
        return _DTYPES.get(asked, param.dtype)
    if param.dim() < 2 or param.numel() < _SMALLEST_CODED:
        return torch.float32
    code_dtype = _CODE_DTYPES[asked]
    if not hold_whole_groups(param, code_of(code_dtype).group_size):
        return torch.float32
    return code_dtype


def _first_seed(param: Tensor, ordinal: int) -> Tensor:
    # An odd multiplier spreads the seeds of neighbours over all 2^32 values.
    seed = (ordinal * 0x9E3779B1) % 2**32 - 2**31
    return torch.tensor(seed, dtype=torch.int32, device=param.device)


def _rounds_stochastically(param: Tensor, options: Mapping[str, Any]) -> bool:
    if options["stochastic_rounding"] is False:
        return False
    stored = {param.dtype}
    if options["momentum"] != 0:
        stored.add(_momentum_dtype(param, options))
    return bool(stored & {torch.bfloat16, torch.int8, torch.uint8})
