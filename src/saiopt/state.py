"""What the optimizer keeps for a parameter.

``scale``
    0-d float32. 0: not calibrated. s > 0: calibrated, the momentum runs. -s < 0: the
    scale is s already, and the next usable gradient starts the momentum.
``momentum_buffer``
    m, shaped like the parameter; absent where the momentum has always been 0.
``rounding_seed``
    0-d int32, advances by one each step; present where results round stochastically.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .options import STATE_DTYPES


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
        state["momentum_buffer"] = momentum_buffer(param, options)
    if _rounds_stochastically(param, options):
        # An odd multiplier spreads the seeds of neighbours over all 2^32 values.
        seed = (ordinal * 0x9E3779B1) % 2**32 - 2**31
        state["rounding_seed"] = torch.tensor(
            seed, dtype=torch.int32, device=param.device
        )
    return state


def momentum_buffer(param: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return a zero momentum of the parameter's shape and the group's state dtype.

    Args:
        param: the parameter.
        options: its group's options by name.

    Returns:
        Zeros with the parameter's strides.
    """
    return torch.zeros_like(
        param,
        dtype=STATE_DTYPES.get(options["state_dtype"], param.dtype),
        memory_format=torch.preserve_format,
    )


def _rounds_stochastically(param: Tensor, options: Mapping[str, Any]) -> bool:
    if options["stochastic_rounding"] is False:
        return False
    stored = STATE_DTYPES.get(options["state_dtype"], param.dtype)
    return torch.bfloat16 in {param.dtype, stored}
