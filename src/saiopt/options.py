"""Which values the optimizer's arguments may take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .scaling import NAMES

STATE_DTYPES = (None, torch.float32, torch.bfloat16, torch.int8, "int4")


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
    if options["state_dtype"] not in STATE_DTYPES:
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
        TypeError: the parameter is complex, sparse or not of floating point.
        ValueError: `stochastic_rounding` is True for a float16 parameter.
    """
    if not param.is_floating_point() or param.layout != torch.strided:
        raise TypeError(
            "params must be dense real tensors of floating point, "
            f"got {param.dtype} with layout {param.layout}"
        )
    if options["stochastic_rounding"] and param.dtype == torch.float16:
        raise ValueError(
            "stochastic_rounding must be None or False for float16 parameters, got True"
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
