"""LoRA's two factors by different rules: one orthogonal, the other factored."""

from torch import nn

from saiopt import SGDSaI, orthogonal_groups

# What the roles call a matrix with factored scales and the plain learning rate.
_FACTORED = "other"


def factored_a(
    model: nn.Module, lr: float, weight_decay: float, momentum: float = 0.9
) -> SGDSaI:
    """Step B along its orthogonal factor, A by factored scales."""
    return _with_factored(model, lr, weight_decay, momentum, ".lora_A.")


def factored_b(
    model: nn.Module, lr: float, weight_decay: float, momentum: float = 0.9
) -> SGDSaI:
    """Step A along its orthogonal factor, B by factored scales."""
    return _with_factored(model, lr, weight_decay, momentum, ".lora_B.")


def _with_factored(
    model: nn.Module, lr: float, weight_decay: float, momentum: float, part: str
) -> SGDSaI:
    groups = orthogonal_groups(
        model,
        weight_decay,
        role_of=lambda name, _: _FACTORED if part in name else None,
    )
    return SGDSaI(groups, lr=lr, momentum=momentum)
