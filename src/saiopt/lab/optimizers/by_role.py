"""SGD-SaI whose rules go by the roles of parameters."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from saiopt.optimizer import SGDSaI, orthogonal_groups
from saiopt.optimizer.roles import ALL_FACTORED
from saiopt.optimizer.sgdsai import StateDtype


def by_role(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    rule: str,
    momentum: float,
    rest: float = 1.0,
    state_dtype: StateDtype | None = None,
) -> SGDSaI:
    """Build SGD-SaI with one rule for hidden matrices, all others factored.

    Args:
        model: What is trained.
        lr: η, in AdamW's units.
        weight_decay: λ of all parameters but vectors.
        rule: Of the hidden matrices, ``"orthogonal"`` or ``"factored"``.
        momentum: μ.
        rest: Multiplies the rate of all but hidden matrices, beside their roles' own.
        state_dtype: Name of the momentum's dtype, None for the parameters'.

    Returns:
        The optimizer.
    """
    roles = ALL_FACTORED if rule == "factored" else None
    groups = orthogonal_groups(model, weight_decay, roles=roles)
    multiply_rest(groups, rest)
    return SGDSaI(groups, lr=lr, momentum=momentum, state_dtype=state_dtype)


def multiply_rest(groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Multiply the step of everything but hidden matrices.

    Args:
        groups: By role.
        factor: Of their ``lr_multiplier``.
    """
    for group in groups:
        if group["role"] not in {"hidden", "stacked"}:
            group["lr_multiplier"] *= factor
