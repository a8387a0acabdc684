"""Which values the optimizer's arguments may take."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from .scaling import NAMES

# By the names that groups keep: distributed checkpoints refuse a torch.dtype.
_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}
STATE_DTYPES = (*_DTYPE_NAMES.values(), "int4")


def state_dtype_name(state_dtype: object) -> object:
    """Return the name under which a group keeps its state dtype.

    Args:
        state_dtype: what the user gave.

    Returns:
        A name of :data:`STATE_DTYPES`, or what was given where it has none.
    """
    if isinstance(state_dtype, torch.dtype):
        return _DTYPE_NAMES.get(state_dtype, state_dtype)
    return state_dtype


def check(options: Mapping[str, Any]) -> None:
    """Check the options of one param group.

    Args:
        options: the group's options by name; other keys are the user's own.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: an option is out of its range.
    """
    _check_lr(options["lr"])
    _check_number("momentum", options["momentum"], below=1)
    _check_number("eps", options["eps"])
    _check_number("weight_decay", options["weight_decay"])
    scaling = options["scaling"]
    if not callable(scaling) and scaling not in NAMES:
        names = ", ".join(repr(name) for name in NAMES)
        raise ValueError(f"scaling must be one of {names} or callable, got {scaling!r}")
    if options["state_dtype"] not in (None, *STATE_DTYPES):
        raise ValueError(
            "state_dtype must be None, torch.float32, torch.bfloat16, torch.int8 or "
            "'int4', "
            f"got {options['state_dtype']!r}"
        )
    _check_flag("maximize", options["maximize"], optional=False)
    for name in ("foreach", "fused", "stochastic_rounding"):
        _check_flag(name, options[name], optional=True)
    if options["foreach"] and options["fused"]:
        raise ValueError("foreach must be False or None where fused is True, got True")


def check_param(param: Tensor, options: Mapping[str, Any]) -> None:
    """Check that the optimizer can update a parameter.

    Args:
        param: the parameter.
        options: its group's options by name.

    Raises:
        RuntimeError: FSDP1 flattened several parameters into this one.
        TypeError: the parameter is complex, sparse or not of floating point.
        ValueError: `stochastic_rounding` is True for a float16 parameter.
    """
    if not param.is_floating_point() or param.layout != torch.strided:
        raise TypeError(
            "params must be dense real tensors of floating point, "
            f"got {param.dtype} with layout {param.layout}"
        )
    if getattr(param, "_is_flat_param", False):
        raise RuntimeError(
            "params must be whole parameters, got a flattened one, in which the blocks "
            "are lost: wrap the model with FullyShardedDataParallel("
            "use_orig_params=True), or with fully_shard"
        )
    if options["stochastic_rounding"] and param.dtype == torch.float16:
        raise ValueError(
            "stochastic_rounding must be None or False for float16 parameters, got True"
        )


def check_shape(param: Tensor, given: Container[torch.Size]) -> None:
    """Check that a parameter is one of the blocks that the optimizer was given.

    Trainers that flatten parameters put one long tensor in the place of many blocks, or
    a part of it, after the optimizer is made.

    Args:
        param: a parameter that has no state yet.
        given: the shapes of the parameters that were given.

    Raises:
        RuntimeError: no block has this shape.
    """
    if param.shape not in given:
        raise RuntimeError(
            "params must keep the shapes that the optimizer was given, got "
            f"{tuple(param.shape)}: a flattened tensor has lost its blocks, and new "
            "parameters come through add_param_group"
        )


def check_grad(param: Tensor) -> None:
    """Check that the optimizer can read a parameter's gradient.

    Args:
        param: the parameter, with or without a gradient.

    Raises:
        RuntimeError: the gradient is sparse, or not of the parameter's shape.
    """
    grad = param.grad
    if grad is None:
        return
    if grad.layout != torch.strided:
        raise RuntimeError(f"gradients must be dense, got {grad.layout}")
    if grad.shape != param.shape:
        raise RuntimeError(
            "gradients must have the shapes of their parameters, "
            f"got {tuple(grad.shape)} for {tuple(param.shape)}"
        )


def _check_lr(lr: object) -> None:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(
                f"lr must be a float or a tensor of one entry, got {lr.numel()} entries"
            )
        lr = lr.item()
    _check_number("lr", lr)


def _check_number(name: str, value: object, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < below:
        rule = "finite and >= 0" if below == math.inf else f"in [0, {below})"
        raise ValueError(f"{name} must be {rule}, got {value}")


def _check_flag(name: str, value: object, *, optional: bool) -> None:
    if not isinstance(value, bool) and not (optional and value is None):
        rule = "True, False or None" if optional else "True or False"
        raise TypeError(f"{name} must be {rule}, got {value!r}")
