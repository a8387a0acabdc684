"""The scaling rules: from a block's moments to the factor on its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .moments import Moments

NamedScaling: TypeAlias = Literal["gsnr", "gsnr_max", "sqrt_numel", "none"]
Scaling: TypeAlias = "NamedScaling | Callable[[Moments], Tensor]"
NAMES: tuple[NamedScaling, ...] = ("gsnr", "gsnr_max", "sqrt_numel", "none")


def gsnr(moments: Moments, eps: float) -> Tensor:
    """Compute the gradient signal-to-noise ratio of each block.

    s = ‖g‖₂ / (std(g) + ε) with the unbiased standard deviation. At ε = 0 this is
    √((n-1)(1+r²)) with r = |mean| / population std: at least √(n-1), and about √n
    for a gradient of nearly zero mean.

    It deviates from the authors' release on degenerate blocks (one entry, or entries
    that are equal up to rounding): there std is no signal and the release scales by up
    to 1e8, while this returns √n.

    Args:
        moments: moments of the blocks.
        eps: ε >= 0, in the gradient's units.

    Returns:
        s, dimensionless, float64, shape (num_blocks,).

    Example:
        >>> from saiopt.moments import measure
        >>> gsnr(measure([torch.tensor([3.0, -3.0, 3.0, -3.0, 0.0])]), eps=0.0).item()
        2.0

    References:
        Xu et al. (2024), "No More Adam", arXiv 2412.11768, Algorithm 1.
    """
    ratio = moments.norm / (moments.std + eps)
    return torch.where(moments.degenerate, moments.numel.sqrt(), ratio)


def scales(scaling: Scaling, moments: Moments, eps: float) -> Tensor:
    """Apply a scaling rule.

    `"gsnr_max"` gives the same numbers as `"gsnr"`: its division by the largest g-SNR
    concerns all blocks of an optimizer together and happens in calibration.

    Args:
        scaling: a name of :data:`NAMES` or a callable.
        moments: moments of the blocks.
        eps: ε >= 0 of the g-SNR.

    Returns:
        Scales, float64, shape (num_blocks,).

    Raises:
        ValueError: a callable returns another shape than the moments have, or there is
            no rule of this name.
    """
    if callable(scaling):
        result = torch.as_tensor(scaling(moments), dtype=torch.float64, device="cpu")
        if result.shape != moments.numel.shape:
            raise ValueError(
                "scaling must return one scale per block, shape "
                f"{tuple(moments.numel.shape)}, got {tuple(result.shape)}"
            )
        return result
    if scaling == "sqrt_numel":
        return moments.numel.sqrt()
    if scaling == "none":
        return torch.ones_like(moments.numel)
    if scaling in NAMES:
        return gsnr(moments, eps)
    raise ValueError(f"scaling must be one of {', '.join(NAMES)}, got {scaling}")
