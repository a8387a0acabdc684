"""Cutting blocks into tiles, so that float32 copies are of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saiopt.scaling import matrix_shape

# Entries of a tile. On a CPU few enough that its copies stay in the caches and below a
# hundredth of a model; on an accelerator enough to fill it.
_CPU_ENTRIES = 2**15
_ACCELERATOR_ENTRIES = 2**20


class Tile(NamedTuple):
    """Hold a piece of a block seen as a (rows, columns) matrix.

    Args:
        rows: its rows.
        cols: its columns: all, or within one row a range that starts at a multiple of
            every group size.
        splits_rows: whether the block's tensors can be cut within a row.
    """

    rows: slice
    cols: slice
    splits_rows: bool

    def of(self, tensor: Tensor) -> Tensor:
        """Return the tile of a tensor of the block's shape, as a view."""
        if self.splits_rows:
            return tensor.view(matrix_shape(tensor.shape))[self.rows, self.cols]
        return tensor[self.rows] if tensor.dim() > 0 else tensor


def tiles(tensors: Sequence[Tensor]) -> Iterator[Tile]:
    """Cut a block into tiles.

    Rows longer than a tile are cut only where all tensors are contiguous. While
    compiling there is one tile: the compiler fuses, and needs no bound on copies.

    Args:
        tensors: the block's tensors, all of its shape.

    Yields:
        Tiles in the order of the entries.
    """
    rows, cols = matrix_shape(tensors[0].shape)
    if rows * cols == 0:
        return
    if torch.compiler.is_compiling():
        yield Tile(slice(0, rows), slice(0, cols), splits_rows=False)
        return
    entries = _CPU_ENTRIES if tensors[0].is_cpu else _ACCELERATOR_ENTRIES
    splits_rows = all(t.is_contiguous() for t in tensors)
    height = max(entries // cols, 1)
    width = min(entries, cols) if splits_rows else cols
    for row in range(0, rows, height):
        for col in range(0, cols, width):
            yield Tile(
                slice(row, min(row + height, rows)),
                slice(col, min(col + width, cols)),
                splits_rows,
            )
