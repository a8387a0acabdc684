"""The scaling rules by name, and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .factored import FACTORED
from .gsnr import GSNR, GSNR_MAX
from .moments import Moments
from .orthogonal import ORTHOGONAL
from .rule import Rule
from .unmeasured import NONE, SQRT_NUMEL

RULES: dict[str, Rule] = {
    "gsnr": GSNR,
    "gsnr_max": GSNR_MAX,
    "sqrt_numel": SQRT_NUMEL,
    "none": NONE,
    "factored": FACTORED,
    "orthogonal": ORTHOGONAL,
}
# Aliases are types, not strings: typed command lines read them.
Scaling: TypeAlias = str | Callable[[Moments], Tensor]


def rule_of(scaling: Scaling) -> Rule:
    """Return the rule that a name or a callable stands for.

    Args:
        scaling: a name of :data:`RULES`, or a callable from moments to one scale for
            each block.

    Returns:
        The rule.

    Raises:
        ValueError: there is no rule of this name. The scales of a callable raise it
            where their shape is not (num_blocks,).
    """
    if callable(scaling):
        return Rule(lambda moments, _: _checked(scaling(moments), moments))
    if not isinstance(scaling, str) or scaling not in RULES:
        names = ", ".join(map(repr, RULES))
        raise ValueError(f"scaling must be one of {names} or callable, got {scaling!r}")
    return RULES[scaling]


def scales(scaling: Scaling, moments: Moments, eps: float) -> Tensor:
    """Apply a rule that gives one scale per block.

    `"gsnr_max"` gives the same numbers as `"gsnr"`: its division by the largest g-SNR
    concerns all blocks of an optimizer together and happens in calibration.

    Args:
        scaling: a name or a callable.
        moments: moments of the blocks.
        eps: ε >= 0 of the g-SNR.

    Returns:
        Scales, float64, shape (num_blocks,).

    Raises:
        ValueError: see :func:`rule_of`, or the rule gives finer scales.
    """
    rule = rule_of(scaling)
    if rule.scales is None or rule.direction is not None:
        raise ValueError(
            f"scaling must be a rule with one scale per block, got {scaling!r}"
        )
    return rule.scales(moments, eps)


def _checked(values: object, moments: Moments) -> Tensor:
    result = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if result.shape != moments.numel.shape:
        raise ValueError(
            "scaling must return one scale per block, shape "
            f"{tuple(moments.numel.shape)}, got {tuple(result.shape)}"
        )
    return result
