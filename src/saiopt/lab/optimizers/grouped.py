"""Rivals that come with torch or in a package and take param groups as they are."""

import importlib
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from saiopt.optimizer import decay_groups


def grouped(module: str, name: str) -> Callable[..., Optimizer]:
    """Return what builds an optimizer of which all parameters but 1-D ones decay.

    Args:
        module: Imported when the optimizer is built, since it may be missing.
        name: Of the class in it, which takes ``lr`` and settings by keyword.

    Returns:
        A ``build`` as :class:`OptimizerSpec` describes it.
    """

    def build(
        model: nn.Module, lr: float, weight_decay: float, **settings: object
    ) -> Optimizer:
        kind = getattr(importlib.import_module(module), name)
        return kind(decay_groups(model, weight_decay), lr=lr, **settings)

    return build


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
    return grouped("torch.optim", "SGD")(model, lr, coupled, momentum=momentum)
