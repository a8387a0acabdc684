"""The momenta that a direction is given, and the steps along directions."""

import pytest
import torch
from executions import (
    CASES,
    OPTIONS,
    PAIRS,
    SHAPES,
    assert_equal_blocks,
    assert_neighbours,
    copy_of,
    executions,
    look_aheads,
    make_block,
    orthogonal_steps,
)
from torch import nn

from saiopt.update import along, reference

LOOK_AHEADS = look_aheads()
KERNELS = {name: look for name, look in LOOK_AHEADS.items() if name != "torch"}
UPDATES = executions()

EVERY_LOOK_AHEAD = pytest.mark.parametrize(
    "look_ahead", LOOK_AHEADS.values(), ids=LOOK_AHEADS
)
EVERY_KERNEL = pytest.mark.parametrize("name", KERNELS)
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def targets_of(blocks):
    """Slots of one stretch of memory, none of them at a multiple of 16 bytes."""
    targets = []
    for block in blocks:
        is_wide = block.param.dtype == torch.float64
        dtype = torch.float64 if is_wide else torch.float32
        memory = torch.full((block.param.numel() + 2,), torch.nan, dtype=dtype)
        targets.append(memory[1:-1].view(block.param.shape))
    return targets


def assert_looked_ahead(blocks, targets, expected, options):
    """As the reference looks ahead of other blocks, and without touching anything else.

    What they were is what those are but for their momenta.
    """
    for block, target, other in zip(blocks, targets, expected, strict=True):
        ahead = reference.look_ahead(other, options)
        assert_neighbours(target, ahead, 2)
        memory = target.as_strided((target.numel() + 2,), (1,), 0)
        assert memory[[0, -1]].isnan().all()
        assert_equal_blocks(block, other)
        assert torch.equal(block.param, other.param)
        if block.rounding_seed is not None:
            assert block.rounding_seed == other.rounding_seed


@EVERY_LOOK_AHEAD
@pytest.mark.parametrize(
    ("case", "options"),
    [*PAIRS, (CASES[0], OPTIONS["plain"]._replace(momentum=0.5))],
    ids=str,
)
def test_every_look_ahead_equals_the_references(case, options, look_ahead):
    blocks = [make_block(shape, *case, seed=i) for i, shape in enumerate(SHAPES)]
    expected, targets = [copy_of(b) for b in blocks], targets_of(blocks)
    look_ahead(blocks, targets, options)
    assert_looked_ahead(blocks, targets, expected, options)


@EVERY_KERNEL
@EVERY_CASE
def test_a_kernel_stores_the_momentum_that_its_step_stores(case, name):
    blocks = [make_block(shape, *case, seed=i) for i, shape in enumerate(SHAPES)]
    stepped = [copy_of(b) for b in blocks]
    KERNELS[name](blocks, targets_of(blocks), OPTIONS["plain"])
    UPDATES[name](stepped, OPTIONS["plain"])
    for block, other in zip(blocks, stepped, strict=True):
        for key in ("momentum_buffer", "momentum_scale"):
            held, was = getattr(block, key), getattr(other, key)
            assert (held is None) == (was is None)
            if held is not None and case[0] != torch.float64:
                assert torch.equal(held, was)


@EVERY_KERNEL
@EVERY_CASE
def test_a_kernel_takes_all_that_it_knows_but_float64(case, name, monkeypatch):
    left = []
    monkeypatch.setattr(along, "look_ahead", lambda blocks, *_: left.extend(blocks))
    blocks = [make_block(shape, *case) for shape in SHAPES if 0 not in shape]
    KERNELS[name](blocks, targets_of(blocks), OPTIONS["plain"])
    known = [torch.float32, torch.bfloat16]
    if name == "triton":
        known.append(torch.float16)
    assert len(left) == (0 if case[0] in known else len(blocks))


@EVERY_KERNEL
def test_steps_along_a_direction_look_ahead_by_the_kernel(name, monkeypatch):
    left = []
    monkeypatch.setattr(along, "look_ahead", lambda blocks, *_: left.extend(blocks))
    block = make_block((64, 96), torch.float32, "int8", None)
    UPDATES[name]([block], OPTIONS["plain"]._replace(direction=torch.sign))
    assert left == []


@EVERY_KERNEL
def test_what_is_compiled_calls_no_kernel(name, monkeypatch):
    left = []
    monkeypatch.setattr(along, "look_ahead", lambda blocks, *_: left.extend(blocks))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    block = make_block((64, 96), torch.float32, None, None)
    KERNELS[name]([block], targets_of([block]), OPTIONS["plain"])
    assert len(left) == 1


@EVERY_LOOK_AHEAD
def test_blocks_that_a_kernel_knows_may_be_among_others(look_ahead):
    blocks = [
        make_block((30, 65), dtype, state_dtype, None, seed=i)
        for i, (dtype, state_dtype) in enumerate(
            [
                (torch.float32, None),
                (torch.float64, None),
                (torch.bfloat16, "int4"),
                (torch.bfloat16, None),
                (torch.float32, "int8"),
                (torch.float32, "none"),
            ]
        )
    ]
    blocks[3] = blocks[3]._replace(grad=blocks[3].grad.float())
    blocks[4] = blocks[4]._replace(grad=torch._neg_view(blocks[4].grad))
    expected, targets = [copy_of(b) for b in blocks], targets_of(blocks)
    look_ahead(blocks, targets, OPTIONS["plain"])
    assert_looked_ahead(blocks, targets, expected, OPTIONS["plain"])


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def with_gaps(tensor):
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def swapped(tensor):
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


@EVERY_LOOK_AHEAD
@DTYPES
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("lay_out", [channels_last, with_gaps, swapped])
@pytest.mark.parametrize("keys", [("grad",), ("param", "grad", "momentum_buffer")])
def test_targets_are_in_order_whatever_lies_otherwise(
    keys, lay_out, state_dtype, dtype, look_ahead
):
    plain = make_block((40, 7, 5, 3), dtype, state_dtype, None)
    keys = [k for k in keys if k != "momentum_buffer" or plain.momentum_scale is None]
    block = copy_of(plain)
    block = block._replace(**{k: lay_out(getattr(block, k).detach()) for k in keys})
    block = block._replace(param=nn.Parameter(block.param, requires_grad=False))
    targets = targets_of([block])
    look_ahead([block], targets, OPTIONS["plain"])
    assert all(not getattr(block, key).is_contiguous() for key in keys)
    assert_looked_ahead([block], targets, [plain], OPTIONS["plain"])


@EVERY_LOOK_AHEAD
@DTYPES
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8", "int4"])
def test_a_part_of_a_block_looks_ahead_as_the_whole_does(
    state_dtype, dtype, look_ahead
):
    whole = make_block((96, 64), dtype, state_dtype, None)
    rows, scale = slice(33, 96), whole.momentum_scale
    part = copy_of(
        whole._replace(
            param=nn.Parameter(whole.param[rows], requires_grad=False),
            grad=whole.grad[rows],
            momentum_buffer=whole.momentum_buffer[rows],
            momentum_scale=None if scale is None else scale[rows],
            start=33 * 64,
            pitch=64,
        )
    )
    targets = targets_of([whole, part])
    look_ahead([whole, part], targets, OPTIONS["plain"])
    assert torch.equal(targets[1], targets[0][rows])
    assert torch.equal(part.momentum_buffer, whole.momentum_buffer[rows])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@EVERY_LOOK_AHEAD
@DTYPES
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
def test_a_block_that_starts_looks_at_its_gradient_alone(
    state_dtype, dtype, look_ahead
):
    block = make_block((33, 96), dtype, state_dtype, None)
    held = block.momentum_buffer if block.momentum_scale is None else None
    (block.momentum_scale if held is None else held).fill_(torch.nan)
    block.grad[3, 40] = torch.inf
    [target] = targets = targets_of([block])
    look_ahead([block], targets, OPTIONS["starting"])
    assert torch.equal(target, block.grad.float())


@DTYPES
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("execution", [{}, {"foreach": True}], ids=["chosen", "lists"])
def test_orthogonal_steps_are_the_same_by_every_execution(
    execution, state_dtype, dtype
):
    params = orthogonal_steps(dtype, state_dtype, **execution)
    expected = orthogonal_steps(dtype, state_dtype, fused=False)
    for param, other in zip(params, expected, strict=True):
        assert_neighbours(param, other, 4)
