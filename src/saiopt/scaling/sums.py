"""Sums of a gradient's entries over a block, its rows and its columns."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from .rule import Axis

# Entries of a chunk: see moments.
_CPU_ENTRIES = 2**17
_ACCELERATOR_ENTRIES = 2**22


def sums_of(
    matrix: Tensor, entries: Callable[[Tensor], Tensor], axes: Collection[Axis]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum a function of entries in float64, over chunks of whole rows.

    Args:
        matrix: a gradient, or the part of it that lives here, (rows, columns).
        entries: the function, elementwise.
        axes: which sums beside the one over all.

    Returns:
        Float64: the sum over all, 0-d; those of the rows and of the columns, None where
        they are not asked for.

    Example:
        >>> sums_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.square, ["row"])[1]
        tensor([ 5., 25.], dtype=torch.float64)
    """
    rows, cols = matrix.shape
    by_row = matrix.new_zeros(rows, dtype=torch.float64)
    by_column = matrix.new_zeros(cols, dtype=torch.float64)
    size = _CPU_ENTRIES if matrix.is_cpu else _ACCELERATOR_ENTRIES
    height = max(size // max(cols, 1), 1)
    for row in range(0, rows, height):
        values = entries(matrix[row : row + height].to(torch.float64))
        by_row[row : row + height] = values.sum(1)
        by_column += values.sum(0)
    return (
        by_row.sum(),
        by_row if "row" in axes else None,
        by_column if "column" in axes else None,
    )
