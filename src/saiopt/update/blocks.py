"""What every execution of the update rule is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saiopt.scaling import matrix_shape


class Block(NamedTuple):
    """Hold the tensors of one block, or of this rank's part of it.

    Args:
        param: θ, changed in place.
        grad: g, never changed.
        momentum_buffer: m, changed in place; None where no momentum is kept.
        scale: s, 0-d float32.
        rounding_seed: 0-d int32; None where results round to nearest. The noise of a
            step is that of the seed's successor.
        momentum_scale: scales of the codes in `momentum_buffer`, bfloat16, shape (rows,
            groups), changed in place; None where that holds the momentum itself.
        row_scale: factors on s, float32, shape (rows,); None for 1.
        column_scale: factors on s, float32, shape (columns,); None for 1.
        start: index of the first entry in the whole block, for the noise.
        pitch: from the index of an entry to that of its neighbour in the next row;
            None for the number of columns.
    """

    param: Tensor
    grad: Tensor
    momentum_buffer: Tensor | None
    scale: Tensor
    rounding_seed: Tensor | None
    momentum_scale: Tensor | None = None
    row_scale: Tensor | None = None
    column_scale: Tensor | None = None
    start: int = 0
    pitch: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, columns)."""
        return matrix_shape(self.param.shape)

    @property
    def is_fine(self) -> bool:
        """Tell whether scales differ within the block."""
        return self.row_scale is not None or self.column_scale is not None

    @property
    def runs_on(self) -> bool:
        """Tell whether indices go on from row to row, as in a whole block."""
        return self.pitch is None or self.pitch == self.shape[1]


Direction = Callable[[Tensor], Tensor]


class Coefficients(NamedTuple):
    """Hold the numbers that the blocks of one call share.

    Args:
        lr: η, a float or a 0-d tensor on any device.
        momentum: μ in [0, 1). With 0 the momentum becomes the gradient, which is also
            how a block's first step starts its moving average.
        weight_decay: λ >= 0, decoupled.
        maximize: step along the gradient instead of against it.
        lr_multiplier: factor on η in the step, not in the decay.
        direction: :attr:`saiopt.scaling.Rule.direction`, None for the momentum itself.
        stacked: whether the first dimension of a block counts matrices, each with a
            direction of its own.
    """

    lr: float | Tensor
    momentum: float
    weight_decay: float
    maximize: bool
    lr_multiplier: float = 1.0
    direction: Direction | None = None
    stacked: bool = False

    @classmethod
    def of(
        cls,
        group: Mapping[str, Any],
        direction: Direction | None = None,
        *,
        starting: bool = False,
    ) -> Coefficients:
        """Read the numbers of a param group.

        Args:
            group: the param group.
            direction: of its scaling rule.
            starting: whether the blocks take their first step. Then the moving average
                has weight 1: m = g.

        Returns:
            The coefficients.
        """
        return cls(
            lr=_at_least_float32(group["lr"]),
            momentum=0.0 if starting else float(group["momentum"]),
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
            lr_multiplier=float(group["lr_multiplier"]),
            direction=direction,
            stacked=group["stacked"],
        )

    @property
    def shrink(self) -> float | Tensor:
        """Return 1 - ηλ."""
        return 1 - self.lr * self.weight_decay

    @property
    def signed_multiplier(self) -> float:
        """Return what η s is multiplied by in the step."""
        return self.lr_multiplier if self.maximize else -self.lr_multiplier


def _at_least_float32(lr: float | Tensor) -> float | Tensor:
    if not isinstance(lr, Tensor):
        return float(lr)
    # In 16 bits 1 - ηλ is often 1.
    dtype = torch.promote_types(lr.dtype, torch.float32)
    return lr.squeeze().to(dtype)
