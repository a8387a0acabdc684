import pytest
import torch
from executions import (
    OPTIONS,
    PAIRS,
    SHAPES,
    assert_equal_blocks,
    copy_of,
    executions,
    make_block,
    momentum_of,
)
from torch import nn

from saiopt.update import Block, Coefficients, reference

EXECUTIONS = executions()

EVERY_EXECUTION = pytest.mark.parametrize("update", EXECUTIONS.values(), ids=EXECUTIONS)
REFERENCE_TOO = pytest.mark.parametrize(
    "update",
    [reference.update, *EXECUTIONS.values()],
    ids=["reference", *EXECUTIONS],
)


@EVERY_EXECUTION
@pytest.mark.parametrize(("case", "options"), PAIRS, ids=str)
def test_every_execution_equals_the_reference(case, options, update):
    blocks = [make_block(shape, *case, seed=i) for i, shape in enumerate(SHAPES)]
    expected = [copy_of(b) for b in blocks]
    reference.update(expected, options)
    update(blocks, options)
    for block, other in zip(blocks, expected, strict=True):
        assert_equal_blocks(block, other)


@EVERY_EXECUTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "lay_out", [lambda t: t.t().contiguous().t(), lambda t: t[::2]]
)
def test_tensors_with_gaps_or_other_strides_are_updated_in_place(
    lay_out, dtype, update
):
    plain = make_block((128, 66), dtype, None, None)
    param, grad, buffer = (
        lay_out(t.detach().clone())
        for t in (plain.param, plain.grad, plain.momentum_buffer)
    )
    block = plain._replace(
        param=nn.Parameter(param, requires_grad=False),
        grad=grad,
        momentum_buffer=buffer,
    )
    expected = copy_of(block._replace(param=param.contiguous()))
    expected = expected._replace(
        grad=grad.contiguous(), momentum_buffer=buffer.contiguous()
    )
    reference.update([expected], OPTIONS["plain"])
    update([block], OPTIONS["plain"])
    assert block.param.data_ptr() == param.data_ptr()
    assert_equal_blocks(block, expected)


@REFERENCE_TOO
@pytest.mark.parametrize("state_dtype", ["int8", "int4"])
def test_coded_momentum_of_a_channels_last_parameter_follows_its_logical_order(
    state_dtype, update
):
    plain = make_block((64, 8, 3, 3), torch.float32, state_dtype, None)
    last = copy_of(plain)
    last.param.data = last.param.contiguous(memory_format=torch.channels_last)
    reference.update([plain], OPTIONS["plain"])
    update([last], OPTIONS["plain"])
    assert_equal_blocks(last, plain)


@REFERENCE_TOO
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_may_vary_within_the_block(dtype, update):
    rows = torch.tensor([[1.0], [10.0]])
    param = nn.Parameter(torch.zeros(2, 3, dtype=dtype), requires_grad=False)
    block = Block(param, torch.ones(2, 3, dtype=dtype), None, rows, None)
    update([block], Coefficients(0.5, 0.0, 0.0, maximize=False))
    assert torch.equal(block.param.float(), -0.5 * rows.expand(2, 3))


# As triton's interpreter warns.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@REFERENCE_TOO
@pytest.mark.parametrize("state_dtype", [None, "int8", "int4"])
def test_a_number_that_is_not_finite_stays_one_and_spreads_within_its_group(
    state_dtype, update
):
    for bad in (float("nan"), float("inf")):
        block = make_block((64, 96), torch.float32, state_dtype, None)
        block.grad[3, 40] = bad
        before = block.param.clone()
        update([block], OPTIONS["plain"])
        lost = ~block.param.isfinite()
        assert lost[3, 40]
        assert lost.sum() == 1
        assert (block.param != before).sum() == block.param.numel()
        reach = slice(40, 41) if state_dtype is None else slice(32, 64)
        lost = ~momentum_of(block).isfinite()
        assert lost[3, reach].all()
        assert lost.sum() == reach.stop - reach.start


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@REFERENCE_TOO
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, "int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_block_that_starts_forgets_what_is_not_finite(
    bad, state_dtype, dtype, update
):
    block = make_block((64, 96), dtype, state_dtype, None)
    expected = copy_of(block)
    held = block.momentum_buffer if state_dtype is None else block.momentum_scale
    held.view(-1)[:100] = bad
    for one in (block, expected):
        update([one], OPTIONS["starting"])
    assert_equal_blocks(block, expected)


@REFERENCE_TOO
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autograd_learns_that_a_saved_parameter_has_changed(dtype, update):
    weights = nn.Parameter(torch.ones(3, dtype=dtype))
    loss = weights.square().sum()
    zero, scale = torch.zeros(3, dtype=dtype), torch.tensor(1.0)
    with torch.no_grad():
        update([Block(weights, zero, None, scale, None)], OPTIONS["plain"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@EVERY_EXECUTION
def test_foreign_codes_are_left_to_the_reference(update):
    from saiopt.low_bit import Code, using

    with using(Code(8, companded=True), Code(4, group_size=64)):
        for state_dtype in ("int8", "int4"):
            block = make_block((64, 96), torch.float32, state_dtype, None)
            expected = copy_of(block)
            reference.update([expected], OPTIONS["plain"])
            update([block], OPTIONS["plain"])
            assert torch.equal(block.param, expected.param)
            assert torch.equal(block.momentum_buffer, expected.momentum_buffer)
            assert torch.equal(block.momentum_scale, expected.momentum_scale)
