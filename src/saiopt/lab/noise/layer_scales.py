"""Scales at initialisation for many networks at once, for each layer and network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saiopt.scaling import matrix_shape, rule_of, scales
from saiopt.scaling.moments import Moments
from saiopt.scaling.rule import Measurement, Sums
from saiopt.scaling.sums import sums_of

OPTIMIZERS: dict[str, str] = {
    "sgd": "none",
    "sgdsai": "gsnr",
    "sgdsai-sqrt-numel": "sqrt_numel",
    "sgdsai-factored": "factored",
}
_EPS = 1e-8


def layer_scales(optimizer: str, grads: Sequence[Tensor]) -> list[Tensor]:
    """Apply the optimizer's rule to every layer of every network.

    Then divide a network's scales by Σ s g² / Σ g² over its entries, so that the first
    step lowers the loss as much as one of SGD with the same lr, and a temperature
    means the same for all rules. It deviates from SGDSaI by this factor, and measures
    one gradient where factored scales measure several.

    Args:
        optimizer: A name of :data:`OPTIMIZERS`.
        grads: First gradient of each layer, shape (num_networks, ...).

    Returns:
        For each layer, shape (num_networks, 1, ..., 1), or that of the layer's gradient
        where scales differ within it.
    """
    rule = OPTIMIZERS[optimizer]
    measurement = rule_of(rule).measurement
    if measurement is None:
        return _by_layer(rule, grads)
    return _by_entry(measurement, grads)


def _by_layer(rule: str, grads: Sequence[Tensor]) -> list[Tensor]:
    moments = [_moments(grad) for grad in grads]
    raw = torch.stack([scales(rule, layer, _EPS) for layer in moments])
    power = torch.stack([layer.norm.square() for layer in moments])
    mean = (raw * power).sum(0) / power.sum(0)
    return [
        layer.to(grad).view(-1, *[1] * (grad.dim() - 1))
        for layer, grad in zip(raw / mean, grads, strict=True)
    ]


def _by_entry(measurement: Measurement, grads: Sequence[Tensor]) -> list[Tensor]:
    raw = [
        torch.stack([_finer(measurement, g.double()) for g in grad]) for grad in grads
    ]
    squares = [grad.double().square() for grad in grads]
    scaled = [(s * g2).flatten(1).sum(1) for s, g2 in zip(raw, squares, strict=True)]
    mean = torch.stack(scaled).sum(0)
    mean /= torch.stack([g2.flatten(1).sum(1) for g2 in squares]).sum(0)
    return [
        (layer / mean.view(-1, *[1] * (layer.dim() - 1))).to(grad)
        for layer, grad in zip(raw, grads, strict=True)
    ]


def _finer(measurement: Measurement, grad: Tensor) -> Tensor:
    """Return the scale of every entry from one gradient of a layer."""
    shape = matrix_shape(grad.shape)
    axes = measurement.axes(grad.shape)
    sums = sums_of(grad.view(shape), measurement.entries, axes)
    found = measurement.scales(Sums(*sums, shape, 1))
    entries = found.block.expand(shape)
    if found.row is not None:
        entries = entries * found.row[:, None]
    if found.column is not None:
        entries = entries * found.column
    return entries.view(grad.shape)


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
