"""The paper's rules: a block's scale is the signal-to-noise ratio of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import Moments
from .rule import Rule


def gsnr(moments: Moments, eps: float) -> Tensor:
    """Compute the gradient signal-to-noise ratio of each block.

    s = ‖g‖₂ / (std(g) + ε) with the unbiased standard deviation. At ε = 0 this is
    √((n-1)(1+r²)) with r = |mean| / population std: at least √(n-1), and about √n
    for a gradient of nearly zero mean.

    It deviates from the authors' release on degenerate blocks (one entry, or entries
    that are equal up to rounding, :attr:`Moments.degenerate`): there std is no signal
    and the release scales by up to 1e8, while this returns √n.

    Args:
        moments: moments of the blocks.
        eps: ε >= 0, in the gradient's units.

    Returns:
        s, dimensionless, float64, shape (num_blocks,).

    Example:
        >>> from saiopt.scaling import measure
        >>> gsnr(measure([torch.tensor([3.0, -3.0, 3.0, -3.0, 0.0])]), eps=0.0).item()
        2.0

    References:
        Xu et al. (2024), "No More Adam", arXiv 2412.11768, Algorithm 1.
    """
    ratio = moments.norm / (moments.std + eps)
    return torch.where(moments.degenerate, moments.numel.sqrt(), ratio)


GSNR = Rule(gsnr)
# Algorithm 1 divides by the largest g-SNR of all blocks, which calibration does.
GSNR_MAX = Rule(gsnr, needs_all_blocks=True)
