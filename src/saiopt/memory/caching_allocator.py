"""What a list of tensors costs in torch's caching allocator for CUDA.

The allocator never hands out a tensor's bytes alone:

- a request is rounded up to 512 bytes;
- up to 1 MiB it is cut from a segment of 2 MiB, below 10 MiB from one of 20 MiB, and
  above it gets a segment of its own, rounded up to 2 MiB;
- it takes the smallest free block that fits. What is left of that block becomes a free
  block, but in the large pool only if it exceeds 1 MiB: a smaller rest stays with the
  tensor and counts as allocated.

That last rule is why ``torch.cuda.memory_allocated`` exceeds the tensors' bytes: a
float32 tensor of 39.06 MiB holds a block of 40 MiB.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20
_ROUNDING = 512
_LARGEST_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_OWN_SEGMENT_FROM = 10 * MIB
_OWN_SEGMENT_ROUNDING = 2 * MIB


@dataclass(frozen=True)
class Footprint:
    """Hold what a group of tensors occupies, in bytes.

    Args:
        tensor_bytes: of the tensors alone.
        block_bytes: of the allocator's blocks that hold those on the device of the
            parameters, what ``torch.cuda.memory_allocated`` shows.
        segment_bytes: of the segments that hold the blocks, what
            ``torch.cuda.memory_reserved`` shows.
    """

    tensor_bytes: int
    block_bytes: int
    segment_bytes: int


class CachingAllocator:
    """Imitate the allocator for tensors that are allocated and never freed.

    It deviates from the real one in what a running program does before: blocks that
    were freed earlier, and expandable segments, are not imitated.

    Example:
        >>> allocator = CachingAllocator()
        >>> allocator.allocate(39 * MIB + 1) // MIB
        40
        >>> allocator.segment_bytes // MIB
        40

    References:
        PyTorch 2.13, ``c10/core/AllocatorConfig.h`` for the sizes and
        ``c10/cuda/CUDACachingAllocator.cpp``, ``should_split``, for the rests.
    """

    def __init__(self) -> None:
        self.block_bytes = 0
        self.segment_bytes = 0
        self._free_small: list[int] = []
        self._free_large: list[int] = []

    def allocate(self, tensor_bytes: int) -> int:
        """Allocate a tensor.

        Args:
            tensor_bytes: its size, 0 allowed.

        Returns:
            Bytes of its block.
        """
        if tensor_bytes == 0:
            return 0
        size = _round_up(tensor_bytes, _ROUNDING)
        is_small = size <= _LARGEST_SMALL
        free = self._free_small if is_small else self._free_large
        place = bisect.bisect_left(free, size)
        if place < len(free):
            block = free.pop(place)
        else:
            block = _segment_bytes(size)
            self.segment_bytes += block
        rest = block - size
        if rest >= _ROUNDING if is_small else rest > _LARGEST_SMALL:
            bisect.insort(free, rest)
            block = size
        self.block_bytes += block
        return block


def footprint(
    tensor_bytes: Iterable[int], host_tensor_bytes: Iterable[int] = ()
) -> Footprint:
    """Sum up tensors that are allocated one after the other, in a fresh allocator.

    Args:
        tensor_bytes: sizes of the tensors on the device, in order of allocation.
        host_tensor_bytes: sizes of tensors in host memory, which take no blocks.

    Returns:
        Their bytes, blocks and segments.
    """
    allocator = CachingAllocator()
    total = sum(host_tensor_bytes)
    for size in tensor_bytes:
        total += size
        allocator.allocate(size)
    return Footprint(total, allocator.block_bytes, allocator.segment_bytes)


def _segment_bytes(size: int) -> int:
    if size <= _LARGEST_SMALL:
        return _SMALL_SEGMENT
    if size < _OWN_SEGMENT_FROM:
        return _LARGE_SEGMENT
    return _round_up(size, _OWN_SEGMENT_ROUNDING)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
