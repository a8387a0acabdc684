import pytest
import torch
from executions import OPTIONS, assert_equal_blocks, copy_of, make_block

from saiopt.update import cpu, library

pytestmark = pytest.mark.skipif(
    isinstance(library.load(), str), reason=f"no kernel: {library.load()}"
)


@pytest.fixture
def _restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_restored_threads")
@pytest.mark.parametrize("num_threads", [2, 5])
def test_the_number_of_threads_changes_no_bit(num_threads):
    kinds = [
        ((700, 513), torch.float32, None),
        ((3,), torch.float32, None),
        ((640, 300), torch.bfloat16, None),
        ((500, 333), torch.float32, "int8"),
        ((90, 4097), torch.bfloat16, "int4"),
    ]
    blocks = [make_block(*kind, None) for kind in kinds]
    alone = [copy_of(b) for b in blocks]
    torch.set_num_threads(1)
    cpu.update(alone, OPTIONS["plain"])
    torch.set_num_threads(num_threads)
    cpu.update(blocks, OPTIONS["plain"])
    assert_same_bits(blocks, alone)


@pytest.mark.usefixtures("_restored_threads")
@pytest.mark.parametrize("num_threads", [2, 5])
def test_the_number_of_threads_changes_no_bit_of_a_look_ahead(num_threads):
    kinds = [
        ((640, 300), torch.bfloat16, None),
        ((500, 333), torch.float32, "int8"),
        ((90, 4097), torch.bfloat16, "int4"),
    ]
    blocks = [make_block(*kind, None) for kind in kinds]
    results = []
    for count in (1, num_threads):
        torch.set_num_threads(count)
        copies = [copy_of(b) for b in blocks]
        targets = [torch.empty(b.param.shape) for b in blocks]
        cpu.look_ahead(copies, targets, OPTIONS["plain"])
        results.append((copies, targets))
    (alone, expected), (shared, found) = results
    assert_same_bits(shared, alone)
    assert all(map(torch.equal, found, expected))


def assert_same_bits(blocks, others):
    for block, expected in zip(blocks, others, strict=True):
        for tensor, other in zip(block, expected, strict=True):
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, other)


def test_float32_is_as_exact_as_the_reference_over_many_steps():
    block = make_block((64, 100), torch.float32, None, None)
    exact = [t.double() for t in (block.param, block.grad, block.momentum_buffer)]
    for _ in range(100):
        cpu.update([block], OPTIONS["plain"])
        exact[2].lerp_(exact[1], 1 - 0.9)
        exact[0].mul_(1 - 0.01 * 0.1).sub_(exact[2] * 0.01 * 2.5)
    torch.testing.assert_close(block.param.double(), exact[0], rtol=3e-6, atol=3e-6)


def test_a_momentum_of_other_dtype_than_float64_is_left_to_the_reference():
    block = make_block((8, 4), torch.float64, "float32", None)
    expected = copy_of(block)
    cpu.update([block], OPTIONS["plain"])
    exact = expected.momentum_buffer.double().lerp(expected.grad, 0.1)
    torch.testing.assert_close(block.momentum_buffer, exact.float())


def test_no_blocks_are_no_work():
    cpu.update([], OPTIONS["plain"])
    cpu.update([make_block((0, 4), torch.float32, None, None)], OPTIONS["plain"])


def test_a_negated_view_of_a_gradient_is_read_as_it_reads():
    block = make_block((8, 4), torch.float32, None, None)
    expected = copy_of(block._replace(grad=-block.grad))
    cpu.update([block._replace(grad=torch._neg_view(block.grad))], OPTIONS["plain"])
    cpu.update([expected], OPTIONS["plain"])
    assert_equal_blocks(block, expected)
