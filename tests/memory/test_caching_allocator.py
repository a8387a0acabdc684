import pytest

from saiopt.memory.caching_allocator import MIB, CachingAllocator, footprint


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (9 * MIB, 9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (39 * MIB + 1, 40 * MIB, 40 * MIB),
        (40 * MIB, 40 * MIB, 40 * MIB),
    ],
)
def test_one_tensor_takes_its_block_and_its_segment(size, block, segment):
    allocator = CachingAllocator()
    assert allocator.allocate(size) == block
    assert (allocator.block_bytes, allocator.segment_bytes) == (block, segment)


def test_tensors_share_segments_while_they_fit():
    assert footprint([6 * MIB] * 3).segment_bytes == 20 * MIB
    assert footprint([6 * MIB] * 4).segment_bytes == 40 * MIB
    assert footprint([512] * 4096).segment_bytes == 2 * MIB
    assert footprint([512] * 4097).segment_bytes == 4 * MIB


def test_a_rest_of_at_most_one_mebibyte_stays_with_a_large_tensor():
    two = [int(9.75 * MIB)] * 2
    assert footprint(two).block_bytes == 20 * MIB
    assert footprint([9 * MIB, 9 * MIB]).block_bytes == 18 * MIB


def test_the_smallest_free_block_that_fits_is_taken():
    allocator = CachingAllocator()
    for size in (18 * MIB - MIB // 2, 9 * MIB, 9 * MIB):
        allocator.allocate(size)
    before = allocator.segment_bytes
    allocator.allocate(2 * MIB)
    assert allocator.segment_bytes == before


def test_an_empty_tensor_takes_nothing_and_host_tensors_take_no_blocks():
    found = footprint([0], host_tensor_bytes=[4, 4])
    assert (found.tensor_bytes, found.block_bytes, found.segment_bytes) == (8, 0, 0)
