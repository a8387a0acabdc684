"""What a scaling rule says: what it measures, for how long, which scales, which way.

A rule of today measures one gradient and gives a block one number. A finer rule gives
a :class:`Measurement` instead, whose sums may run over several gradients and whose
scales may differ from row to row and from column to column. Rows are the first
dimension of a parameter, columns all others together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from .moments import Moments

Axis: TypeAlias = Literal["row", "column"]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return (rows, columns): the first dimension, and all others together.

    Args:
        shape: of a parameter.

    Returns:
        Its shape as a matrix; a vector has one column.
    """
    return (shape[0] if shape else 1), math.prod(shape[1:])


@dataclass(frozen=True)
class Sums:
    """Hold what a rule has accumulated of one block.

    Args:
        block: Σ f(g) over all entries and gradients, 0-d float64, of the whole block.
        row: the same for each row that lives here, shape (rows here,), complete over
            the ranks; None where the rule has no sums of rows.
        column: the same for each column that lives here.
        shape: (rows, columns) of the whole block.
        num_gradients: how many gradients the sums run over.
    """

    block: Tensor
    row: Tensor | None
    column: Tensor | None
    shape: tuple[int, int]
    num_gradients: int


@dataclass(frozen=True)
class Scales:
    """Hold the scale of every entry, s = block · row · column.

    Args:
        block: 0-d.
        row: shape (rows here,), None for 1.
        column: shape (columns here,), None for 1.
    """

    block: Tensor
    row: Tensor | None = None
    column: Tensor | None = None


@dataclass(frozen=True)
class Measurement:
    """Say what is accumulated from several gradients, and which scales it gives.

    Sums merge exactly over chunks and shards by addition.

    Args:
        entries: f >= 0, elementwise, from a float64 chunk of a gradient; 0 at 0 only. A
            gradient for which Σ f is 0, or not finite, is of no use.
        axes: from the shape of a parameter to the axes along which sums and scales
            differ; the same for the whole parameter and its shards.
        scales: from the sums to positive and finite scales, with those of the axes.
            They follow from what was measured so far, and stay after the last gradient.
    """

    entries: Callable[[Tensor], Tensor]
    axes: Callable[[Sequence[int]], tuple[Axis, ...]]
    scales: Callable[[Sums], Scales]


@dataclass(frozen=True)
class Rule:
    """Say what a block is scaled by and which way it moves.

    Args:
        scales: from the moments of blocks and ε to one scale for each block, float64,
            shape (num_blocks,). Not asked where there is a measurement.
        measurement: what finer scales need.
        direction: from a stack of matrices μ m + (1-μ) g, shape (matrices, rows,
            columns), float32 or float64, which it may overwrite, to the directions of
            the same shape, each of which follows from its own matrix alone. They take
            the momentum's place in the update. None: the momentum itself.
        needs_all_blocks: whether the scales are divided by the largest of all blocks
            at the first calibration.
        num_gradients: K, how many usable gradients are measured: 0 where none is, and
            where there is a measurement what serves if `calibration_steps` is None.
    """

    scales: Callable[[Moments, float], Tensor] | None = None
    measurement: Measurement | None = None
    direction: Callable[[Tensor], Tensor] | None = None
    needs_all_blocks: bool = False
    num_gradients: int = 1

    def axes(self, shape: Sequence[int]) -> tuple[Axis, ...]:
        """Return the axes along which the scales of a parameter differ."""
        return () if self.measurement is None else self.measurement.axes(shape)
