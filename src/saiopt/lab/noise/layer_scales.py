"""Scales at initialisation for many networks at once, one per layer and network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saiopt.scaling import scales
from saiopt.scaling.moments import Moments

OPTIMIZERS: dict[str, str] = {
    "sgd": "none",
    "sgdsai": "gsnr",
    "sgdsai-sqrt-numel": "sqrt_numel",
}
_EPS = 1e-8


def layer_scales(optimizer: str, grads: Sequence[Tensor]) -> list[Tensor]:
    """Apply the optimizer's rule to every layer of every network.

    Then divide a network's scales by Σ s‖g‖² / Σ ‖g‖² over its layers, so that the
    first step lowers the loss as much as one of SGD with the same lr, and a temperature
    means the same for all rules. It deviates from SGDSaI by this factor alone.

    Args:
        optimizer: A name of :data:`OPTIMIZERS`.
        grads: First gradient of each layer, shape (num_networks, ...).

    Returns:
        For each layer, shape (num_networks,).
    """
    moments = [_moments(grad) for grad in grads]
    rule = OPTIMIZERS[optimizer]
    raw = torch.stack([scales(rule, layer, _EPS) for layer in moments])
    power = torch.stack([layer.norm.square() for layer in moments])
    mean = (raw * power).sum(0) / power.sum(0)
    return [layer.to(grads[0]) for layer in raw / mean]


def _moments(grad: Tensor) -> Moments:
    entries = grad.flatten(1).double()
    mean = entries.mean(dim=1)
    squared = (entries - mean[:, None]).square().sum(dim=1)
    spacing = torch.finfo(grad.dtype).eps
    return Moments(
        torch.full_like(mean, entries.shape[1]),
        mean,
        squared,
        torch.full_like(mean, spacing),
    )
