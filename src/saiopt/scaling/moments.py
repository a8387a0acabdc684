"""Count, mean and squared deviations of gradients, and their exact merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A standard deviation below so many spacings of the mean is rounding noise. Sums that
# agree in exact arithmetic differ by a few float32 spacings when their order differs;
# stored in fewer bits, equal sums lie at one value or at its neighbour.
SUM_SPACINGS = 16
STORED_SPACINGS = 2


@dataclass(frozen=True)
class Moments:
    """Hold the moments of several blocks, one entry per block.

    Everything the named scaling rules need follows from three numbers per block that
    merge exactly over chunks and shards (:func:`merge`).

    Args:
        numel: n, number of entries, shape (num_blocks,).
        mean: mean entry, shape (num_blocks,).
        squared_deviations: Σ (gᵢ - mean)², shape (num_blocks,).
        spacing: relative spacing of the entries' dtype (``torch.finfo(dtype).eps``),
            shape (num_blocks,).

    Example:
        >>> moments = measure([torch.tensor([1.0, 2.0, 3.0, 4.0])])
        >>> moments.mean.item(), moments.squared_deviations.item()
        (2.5, 5.0)
    """

    numel: Tensor
    mean: Tensor
    squared_deviations: Tensor
    spacing: Tensor

    @property
    def norm(self) -> Tensor:
        """Return ‖g‖₂ = √(Σ (gᵢ - mean)² + n mean²), shape (num_blocks,)."""
        return (self.squared_deviations + self.numel * self.mean.square()).sqrt()

    @property
    def std(self) -> Tensor:
        """Return the unbiased standard deviation, NaN where n = 1."""
        return (self.squared_deviations / (self.numel - 1)).sqrt()

    @property
    def degenerate(self) -> Tensor:
        """Tell the blocks whose standard deviation is absent or rounding noise.

        That is one of at most 16 spacings of the mean in float32 and wider, 2 in 16
        bits: in bfloat16 std/|mean| <= 0.0156, in float16 0.00195.
        """
        summed = self.spacing.clamp(max=torch.finfo(torch.float32).eps)
        noise = torch.maximum(SUM_SPACINGS * summed, STORED_SPACINGS * self.spacing)
        return (self.numel == 1) | (self.std <= noise * self.mean.abs())

    @property
    def usable(self) -> Tensor:
        """Tell the blocks whose entries are all finite and not all zero."""
        finite = self.mean.isfinite() & self.squared_deviations.isfinite()
        return finite & ((self.squared_deviations > 0) | (self.mean != 0))

    def select(self, rows: Tensor) -> Moments:
        """Return the moments of some of the blocks.

        Args:
            rows: boolean, shape (num_blocks,).

        Returns:
            Moments with one entry for each true row.
        """
        return Moments(
            self.numel[rows],
            self.mean[rows],
            self.squared_deviations[rows],
            self.spacing[rows],
        )


def measure(grads: Sequence[Tensor]) -> Moments:
    """Measure the moments of gradients.

    Sums run in float64 (float32 on devices without it) over chunks of bounded size, so
    that no copy of a gradient is ever held and float16 values cannot overflow.

    Args:
        grads: gradients of any floating dtype, shape and stride.

    Returns:
        Moments on the CPU, one entry per gradient, float64. Reading them is the only
        host synchronisation, one for each device that holds gradients.

    Example:
        >>> measure([torch.ones(3), torch.zeros(2)]).numel.tolist()
        [3.0, 2.0]

    References:
        Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
    """
    owners, parts = [], []
    for block, grad in enumerate(grads):
        for part in _chunk_moments(grad):
            owners.append(block)
            parts.append(part)
    numel, mean, squared = _to_host(parts)
    spacings = [torch.finfo(grad.dtype).eps for grad in grads]
    # Without a device, a tensor would lie on the user's default one, as everywhere.
    return merge(
        torch.tensor(owners, dtype=torch.int64, device="cpu"),
        Moments(numel, mean, squared, torch.zeros((), device="cpu")),
        torch.tensor(spacings, dtype=torch.float64, device="cpu"),
    )


def merge(owners: Tensor, parts: Moments, spacing: Tensor) -> Moments:
    """Merge the moments of disjoint parts into those of their blocks.

    Args:
        owners: index of the block that each part belongs to, shape (num_parts,).
        parts: moments of the parts; their `spacing` is not used.
        spacing: relative spacing of each block's dtype, shape (num_blocks,).

    Returns:
        Moments with one entry per block: the mean of the parts' means weighted by
        their counts, and squared deviations about that common mean. A block without
        entries has mean 0 and squared deviations 0.
    """
    zeros = torch.zeros_like(spacing)
    numel = zeros.index_add(0, owners, parts.numel)
    total = zeros.index_add(0, owners, parts.numel * parts.mean)
    mean = total / numel.clamp(min=1)
    shift = parts.numel * (parts.mean - mean[owners]).square()
    squared = zeros.index_add(0, owners, parts.squared_deviations + shift)
    return Moments(numel, mean, squared, spacing)


def _chunk_moments(grad: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (entries, stacked mean and squared deviations) of each chunk."""
    if grad.numel() == 0:
        return
    dtype = torch.float32 if grad.device.type == "mps" else torch.float64
    # Fits the caches of a CPU; on an accelerator, large enough to fill it.
    size = 2**17 if grad.device.type == "cpu" else 2**22
    entries = _any_order(grad)
    buffer = entries.new_empty(min(size, len(entries)), dtype=dtype)
    for chunk in entries.split(size):
        values = buffer[: len(chunk)].copy_(chunk)
        mean = values.mean()
        values.sub_(mean)
        squared = torch.dot(values, values)
        yield len(chunk), torch.stack((mean, squared))


def _any_order(grad: Tensor) -> Tensor:
    """Return the entries as one dimension, as a view where memory has no gaps."""
    if torch.ops.aten.is_non_overlapping_and_dense(grad):
        return grad.as_strided((grad.numel(),), (1,))
    return grad.reshape(-1)


def _to_host(parts: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return counts, means and squared deviations on the CPU in float64."""
    counts = [count for count, _ in parts]
    numel = torch.tensor(counts, dtype=torch.float64, device="cpu")
    values = torch.empty(len(parts), 2, dtype=torch.float64, device="cpu")
    for device in {part.device for _, part in parts}:
        rows = [i for i, (_, part) in enumerate(parts) if part.device == device]
        stacked = torch.stack([parts[i][1] for i in rows])
        values[rows] = stacked.to("cpu", torch.float64)
    return numel, values[:, 0], values[:, 1]
