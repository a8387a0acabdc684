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

from saiopt.update import Block, reference

EXECUTIONS = executions()
UNDECAYED = OPTIONS["undecayed"]

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
@pytest.mark.parametrize("state_dtype", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axes", [("row",), ("column",), ("row", "column")])
def test_scales_may_vary_from_row_to_row_and_from_column_to_column(
    axes, dtype, state_dtype, update
):
    for shape in ((70, 77), (64, 3, 5, 5), (130,), (2, 4100)):
        block = make_block(shape, dtype, state_dtype, None)
        rows, cols = block.shape
        scales = {"row": torch.rand(rows) + 0.5, "column": torch.rand(cols) + 0.5}
        block = block._replace(**{f"{axis}_scale": scales[axis] for axis in axes})
        plain = copy_of(block._replace(row_scale=None, column_scale=None))
        before = block.param.detach().clone()
        update([block], UNDECAYED)
        reference.update([plain], UNDECAYED)
        factor = torch.ones(rows, cols, dtype=dtype)
        if "row" in axes:
            factor *= scales["row"][:, None].to(dtype)
        if "column" in axes:
            factor *= scales["column"].to(dtype)
        moved = (block.param - before).double()
        expected = (plain.param - before).double() * factor.view(shape).double()
        spacing = torch.finfo(dtype).eps
        tolerance = 4 * spacing * (before.abs().double() + expected.abs())
        assert ((moved - expected).abs() <= tolerance).all()
        if block.momentum_buffer is not None:
            assert torch.equal(block.momentum_buffer, plain.momentum_buffer) or (
                update is not reference.update
            )


@REFERENCE_TOO
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, "int8", "int4"])
def test_a_part_of_a_block_rounds_as_the_whole_does(state_dtype, dtype, update):
    whole = make_block((96, 128), dtype, state_dtype, None)
    parts = [slice(0, 33), slice(33, 96)]
    rows = [copy_of(cut(whole, rows=part)) for part in parts]
    cols = [copy_of(cut(whole, cols=part)) for part in (slice(0, 64), slice(64, 128))]
    for block in (whole, *rows, *cols):
        update([block], UNDECAYED)
    for key in ("param", "momentum_buffer", "momentum_scale"):
        values = [getattr(whole, key)]
        if values[0] is None:
            continue
        values += [torch.cat([getattr(b, key) for b in rows])]
        values += [torch.cat([getattr(b, key) for b in cols], dim=1)]
        assert torch.equal(values[1], values[0])
        assert torch.equal(values[2], values[0])


def cut(block, rows=slice(None), cols=slice(None)):
    """A part of a block as a rank has it, contiguous."""
    width = block.param.shape[1]
    first = (rows.start or 0) * width + (cols.start or 0)
    halves = 2 if block.momentum_buffer.dtype == torch.uint8 else 1

    def part(tensor, per=1):
        if tensor is None:
            return None
        start, stop = cols.start, cols.stop
        return tensor[rows, start and start // per : stop and stop // per]

    return block._replace(
        param=nn.Parameter(part(block.param), requires_grad=False),
        grad=part(block.grad),
        momentum_buffer=part(block.momentum_buffer, halves),
        momentum_scale=part(block.momentum_scale, 32),
        start=first,
        pitch=width,
    )


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
