"""The scales of an optimizer by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.scaling import Scales

from .given_scales import BlockScale, held_scale
from .sgdsai import SGDSaI, sgdsai_of
from .state import is_state
from .wrappers import bare_model, bare_name


def get_scales(optimizer: Optimizer, model: nn.Module) -> dict[str, BlockScale]:
    """Return the scale of each of the model's parameters that the optimizer has.

    Where scales differ from row to row or from column to column, of parameters that lie
    on several ranks, all ranks call together.

    Args:
        optimizer: an SGDSaI, or a wrapper that has one as its `.optimizer`.
        model: the model whose names count.

    Returns:
        s by parameter name, 0.0 where a block is not calibrated yet;
        :class:`saiopt.Scales` of whole rows and columns, s = block · row · column,
        where the rule gives such, also before all gradients are measured. The names are
        those of the bare model, without what DDP, FSDP, torch.compile and activation
        checkpointing put in, so that scales of one layout serve in another.

    Raises:
        TypeError: the optimizer is not SGDSaI and wraps none.
        ValueError: the model has no parameter of the optimizer.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = SGDSaI(model.parameters())
        >>> set_scales(optimizer, model, {"weight": 2.0})
        >>> get_scales(optimizer, model)
        {'weight': 2.0, 'bias': 0.0}
    """
    own = sgdsai_of(optimizer)
    return {
        name: _held_scale(own, param)
        for name, param in _named_params(own, model).items()
    }


def set_scales(
    optimizer: Optimizer, model: nn.Module, scales: Mapping[str, BlockScale]
) -> None:
    """Set scales before calibration, or in its place, or anew.

    A block that has not begun takes its scale from here, and its momentum starts at its
    first usable gradient, as after a calibration. A block that runs keeps its momentum.
    One whose rule measures several gradients measures none of them, or no more.
    Nothing changes where this raises.

    Args:
        optimizer: an SGDSaI, or a wrapper that has one as its `.optimizer`.
        model: the model whose names count.
        scales: s > 0 by parameter name, of rows and columns where :func:`get_scales`
            has them; 0 makes a block calibrate at its next usable gradient. Blocks that
            are not named stay as they are.

    Raises:
        TypeError: the optimizer is not SGDSaI and wraps none.
        ValueError: a name is not one of the optimizer's parameters in the model, a
            scale is negative or not finite as float32, which keeps it, or rounds to 0
            there, or the rule of a block gives other ones.
    """
    own = sgdsai_of(optimizer)
    params = _named_params(own, model)
    for name, scale in scales.items():
        if name not in params:
            raise ValueError(
                "scales must name parameters of the model that the optimizer has, "
                f"got {name!r}"
            )
        if isinstance(scale, Scales):
            continue
        if not (0 <= scale < math.inf and _fits_float32(scale)):
            raise ValueError(
                f"scales[{name!r}] must be finite and >= 0, in the range of float32, "
                f"got {scale}"
            )
    own.assign_scales({params[name]: s for name, s in scales.items()})


def _fits_float32(scale: float) -> bool:
    held = torch.tensor(float(scale), dtype=torch.float32, device="cpu").item()
    return held < math.inf and (held > 0) == (scale > 0)


def _held_scale(optimizer: SGDSaI, param: Tensor) -> BlockScale:
    entry = optimizer.state.get(param)
    return held_scale(entry) if is_state(entry) else 0.0


def _named_params(optimizer: SGDSaI, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's parameters by their names in the model."""
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    named: dict[str, Tensor] = {
        bare_name(name): p
        for name, p in bare_model(model).named_parameters()
        if p in owned
    }
    if not named:
        raise ValueError("model must have parameters of the optimizer, got none")
    return named
