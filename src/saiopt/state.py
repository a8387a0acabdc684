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

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .low_bit import buffer_shape, code_of, scale_shape
from .sharding import hold_whole_groups, zeros_beside

# Smaller blocks keep their momentum in float32, and so do those of one dimension:
# together they are hardly any memory, and they are the sensitive ones.
_SMALLEST_CODED = 4096
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CODE_DTYPES = {"int8": torch.int8, "int4": torch.uint8}


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
    """
    state = {"scale": torch.zeros((), dtype=torch.float32, device=param.device)}
    if options["momentum"] != 0:
        state |= momentum(param, options)
    if _rounds_stochastically(param, options):
        state["rounding_seed"] = _first_seed(param, ordinal)
    return state


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
    """
    dtype = _momentum_dtype(param, options)
    if dtype not in _CODE_DTYPES.values():
        buffer = torch.zeros_like(
            param, dtype=dtype, memory_format=torch.preserve_format
        )
        return {"momentum_buffer": buffer}
    code, cols = code_of(dtype), math.prod(param.shape[1:])
    packed = buffer_shape(code, param.shape[0], cols)
    scales = scale_shape(code, param.shape[0], cols)
    return {
        "momentum_buffer": zeros_beside(
            param, param.shape if code.bits == 8 else packed, dtype
        ),
        "momentum_scale": zeros_beside(param, scales, torch.bfloat16),
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
    stored = {param.dtype, _momentum_dtype(param, options)}
    return bool(stored & {torch.bfloat16, torch.int8, torch.uint8})
