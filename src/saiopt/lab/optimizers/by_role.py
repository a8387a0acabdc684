"""SGD-SaI whose rules go by the roles of parameters."""

from typing import Any, Literal, TypeAlias

from torch import nn

from saiopt.optimizer import SGDSaI, orthogonal_groups

# Settings are JSON types: a dtype goes by its name.
DtypeName: TypeAlias = Literal["bfloat16", "int8", "int4"]


def orthogonal(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    state_dtype: DtypeName | None = None,
) -> SGDSaI:
    """Build SGD-SaI with orthogonal steps of hidden matrices, all others factored.

    Args:
        model: What is trained.
        lr: η, in AdamW's units.
        weight_decay: λ of all parameters but vectors.
        momentum: μ.
        state_dtype: Name of the momentum's dtype, None for the parameters'.

    Returns:
        The optimizer.
    """
    groups = orthogonal_groups(model, weight_decay)
    return SGDSaI(groups, lr=lr, momentum=momentum, state_dtype=state_dtype)


def factored(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    state_dtype: DtypeName | None = None,
) -> SGDSaI:
    """Build SGD-SaI with scales of rows and columns for every parameter.

    Groups, multipliers of the learning rate and decay are those of :func:`orthogonal`.

    Args:
        model: What is trained.
        lr: η, in AdamW's units.
        weight_decay: λ of all parameters but vectors.
        momentum: μ.
        state_dtype: Name of the momentum's dtype, None for the parameters'.

    Returns:
        The optimizer.
    """
    groups = factored_groups(model, weight_decay)
    return SGDSaI(groups, lr=lr, momentum=momentum, state_dtype=state_dtype)


def factored_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups by role with the rule ``"factored"`` in each.

    Args:
        model: What is trained.
        weight_decay: λ of all parameters but vectors.

    Returns:
        Param groups for SGD-SaI.
    """
    return [
        {**group, "scaling": "factored", "stacked": False}
        for group in orthogonal_groups(model, weight_decay)
    ]
