"""SGD-SaI whose rules go by the roles of parameters."""

from typing import Literal, TypeAlias

from torch import nn

from saiopt.optimizer import SGDSaI, orthogonal_groups
from saiopt.optimizer.roles import ALL_FACTORED

# Settings are JSON types: a dtype goes by its name.
DtypeName: TypeAlias = Literal["bfloat16", "int8", "int4"]


def by_role(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    rule: str,
    momentum: float,
    state_dtype: DtypeName | None = None,
) -> SGDSaI:
    """Build SGD-SaI with one rule for hidden matrices, all others factored.

    Args:
        model: What is trained.
        lr: η, in AdamW's units.
        weight_decay: λ of all parameters but vectors.
        rule: Of the hidden matrices, ``"orthogonal"`` or ``"factored"``.
        momentum: μ.
        state_dtype: Name of the momentum's dtype, None for the parameters'.

    Returns:
        The optimizer.
    """
    roles = ALL_FACTORED if rule == "factored" else None
    groups = orthogonal_groups(model, weight_decay, roles=roles)
    return SGDSaI(groups, lr=lr, momentum=momentum, state_dtype=state_dtype)
