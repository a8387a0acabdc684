"""Rivals that come with torch."""

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.param_groups import decay_groups


def sgd(
    model: nn.Module, lr: float, weight_decay: float, *, momentum: float
) -> Optimizer:
    """Build SGD with momentum and coupled decay.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ per step of the weights, not of the gradient.
        momentum: μ.

    Returns:
        The optimizer.
    """
    # Coupled decay passes through the momentum buffer, which multiplies it by
    # 1/(1-momentum); this undoes it, so that a step decays by lr * weight_decay.
    coupled = weight_decay * (1 - momentum)
    return torch.optim.SGD(decay_groups(model, coupled), lr=lr, momentum=momentum)


def adam(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """Build Adam with coupled decay.

    It deviates from the other builds: λ is added to the gradient and then normalised,
    so that no value of it decays a weight by a fixed share per step.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ of the L2 penalty.
        betas: β₁ and β₂.
        eps: ε.

    Returns:
        The optimizer.
    """
    groups = decay_groups(model, weight_decay)
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps)


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """Build AdamW.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ.
        betas: β₁ and β₂.
        eps: ε.

    Returns:
        The optimizer.
    """
    groups = decay_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


def adafactor(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    beta2_decay: float,
    d: float,
) -> Optimizer:
    """Build Adafactor, whose step is relative to the size of the weights.

    Args:
        model: What is trained.
        lr: η, limited by 1/√t at step t.
        weight_decay: λ.
        beta2_decay: Exponent of the second moment's decay.
        d: Clipping threshold of the update's root mean square.

    Returns:
        The optimizer.
    """
    groups = decay_groups(model, weight_decay)
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=d)
