"""One scale per row and column, measured over the first gradients and then fixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rule import Axis, Measurement, Rule, Scales, Sums

# Floor of a row's and of a column's root mean square, in units of the block's.
PHI = 0.1
# As many usable gradients as a short warm-up of the learning rate has steps.
CALIBRATION_STEPS = 100


def factored(sums: Sums) -> Scales:
    """Compute the scales of rows and columns from sums of squared gradients.

    With r and c the means of g² over each row and each column and over K gradients, and
    their common mean v = mean(r) = mean(c)::

        s = √(v / max(r, φ²v)) · √(v / max(c, φ²v)) / √v        φ = 0.1

    so that 1/s² is Adafactor's rank-one estimate r cᵀ / v of the mean of g², and a row
    without any gradient is scaled as one of a tenth of the block's root mean square. A
    block of one axis gets s = 1/√v. It deviates from Adafactor in that it is measured
    once, and has a floor instead of an ε and no clipping.

    Args:
        sums: of g², of a block with a gradient that is not all zero.

    Returns:
        Scales in units of 1/gradient, the block's 0-d, those of rows and columns
        relative to it.

    Example:
        >>> squares = torch.tensor([[1.0, 1.0], [4.0, 4.0]])
        >>> sums = Sums(squares.sum(), squares.sum(1), squares.sum(0), (2, 2), 1)
        >>> found = factored(sums)
        >>> found.block * found.row, found.column
        (tensor([1.0000, 0.5000]), tensor([1., 1.]))

    References:
        Shazeer and Stern (2018), "Adafactor", arXiv 1804.04235, section 3.
    """
    rows, cols = sums.shape
    mean = sums.block / (rows * cols * sums.num_gradients)
    return Scales(
        # What the smallest numbers of float32 are scaled by is beyond its range.
        mean.rsqrt().clamp(max=torch.finfo(torch.float32).max),
        _relative(sums.row, mean * (cols * sums.num_gradients)),
        _relative(sums.column, mean * (rows * sums.num_gradients)),
    )


def _relative(sums: Tensor | None, mean: Tensor) -> Tensor | None:
    """Return √(mean / sum), at most 1/φ."""
    return None if sums is None else (sums / mean).clamp(min=PHI**2).rsqrt()


def _axes(shape: Sequence[int]) -> tuple[Axis, ...]:
    return ("row", "column") if len(shape) > 1 else ()


FACTORED = Rule(
    measurement=Measurement(torch.square, _axes, factored),
    num_gradients=CALIBRATION_STEPS,
)
