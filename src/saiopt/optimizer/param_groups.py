"""Which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from saiopt.distributed.fsdp1 import is_slice


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into those that decay and those that do not.

    Biases, the scales and shifts of norms and all other parameters of at most one
    dimension do not decay. Shared parameters appear once.

    Args:
        model: the model.
        weight_decay: λ >= 0 of the parameters that decay.

    Returns:
        Param groups for an optimizer, without empty ones: `params`, `weight_decay`.

    Raises:
        ValueError: the model has no parameter that requires a gradient, or FSDP1 keeps
            slices of its parameters, which all have one dimension.

    Example:
        >>> groups = decay_groups(nn.Linear(3, 2), weight_decay=0.1)
        >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
        [(1, 0.1), (1, 0.0)]
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("model must have a parameter that requires a gradient")
    if any(is_slice(p) for p in trainable):
        raise ValueError(
            "model must not be sliced by FullyShardedDataParallel, which leaves one "
            "dimension of every parameter: choose the groups by name"
        )
    return split_by_decay(trainable, weight_decay)


def split_by_decay(
    params: Iterable[Tensor], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not.

    Args:
        params: those of at most one dimension do not decay.
        weight_decay: λ >= 0 of the others.

    Returns:
        Param groups as those of :func:`decay_groups`.
    """
    decaying, others = [], []
    for param in params:
        (decaying if param.dim() >= 2 else others).append(param)
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
