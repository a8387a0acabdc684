import os
import subprocess
import sys
import weakref
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from executions import (
    OPTIONS,
    assert_equal_blocks,
    assert_neighbours,
    copy_of,
    make_block,
    orthogonal_steps,
)

from saiopt import SGDSaI, step_in_backward
from saiopt.update import (
    Coefficients,
    Execution,
    advance,
    foreach,
    reference,
)
from saiopt.update.choice import Kernel, choose

pytest.importorskip("triton")
from saiopt.update import triton

# Without a GPU the kernel runs on the CPU, in triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [
    ((40, 64), torch.float32, None),
    ((3,), torch.float32, None),
    ((), torch.float32, None),
    ((70, 64), torch.float32, "int8"),
    ((64, 80), torch.bfloat16, "int4"),
    ((129, 130), torch.float32, None),
]


def blocks_and_expected():
    expected = [make_block(*kind, None, seed=i) for i, kind in enumerate(KINDS)]
    blocks = [copy_of(b, DEVICE) for b in expected]
    return blocks, expected


def assert_all_equal(blocks, expected, *, spacings=1):
    for block, other in zip(blocks, expected, strict=True):
        assert_equal_blocks(copy_of(block), other, spacings=spacings)


class Launches:
    """Stands before the kernel and notes its launches."""

    def __init__(self, kernel):
        self.kernel, self.programs, self.options = kernel, [], []

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.programs.append(grid[0])
            self.options.append(options)
            self.kernel[grid](*args, **options)

        return launch

    def layouts(self):
        return [options["LAYOUT"] for options in self.options]


@pytest.fixture
def launches(monkeypatch):
    launches = Launches(triton.update_kernel)
    monkeypatch.setattr(triton, "update_kernel", launches)
    return launches


@pytest.fixture
def tables(monkeypatch):
    """Weak references to all tables that are made on a device."""
    made = []

    class Noted(triton._DeviceTable):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(triton, "_DeviceTable", Noted)
    return made


def test_blocks_of_a_kind_share_a_launch(launches):
    blocks, _ = blocks_and_expected()
    many = [copy_of(blocks[0]._replace(grad=blocks[0].grad + i)) for i in range(9)]
    triton.update([*many, blocks[0]], OPTIONS["plain"])
    # 40 × 64 entries are 80 groups, one program.
    assert launches.programs == [10]


def test_blocks_of_a_kind_share_a_launch_that_looks_ahead(launches):
    blocks, _ = blocks_and_expected()
    many = [copy_of(b, DEVICE) for b in (blocks[3], blocks[4]) for _ in range(3)]
    targets = [torch.empty(b.param.shape, device=DEVICE) for b in many]
    triton.look_ahead(many, targets, OPTIONS["plain"])
    assert len(launches.programs) == 2
    assert all(options["LOOKS_AHEAD"] for options in launches.options)


def test_several_steps_with_old_and_new_gradients_equal_the_reference():
    blocks, expected = blocks_and_expected()
    for step in range(4):
        if step == 2:
            blocks = [b._replace(grad=b.grad.clone() + 1) for b in blocks]
            expected = [b._replace(grad=b.grad + 1) for b in expected]
        triton.update(blocks, OPTIONS["plain"])
        reference.update(expected, OPTIONS["plain"])
    assert_all_equal(blocks, expected, spacings=4)


# Layouts


def laid_out(block, lay_out, keys=("param", "grad", "momentum_buffer")):
    """A block whose tensors of the parameter's shape lie otherwise."""
    coded = block.momentum_scale is not None
    held = {
        key: getattr(block, key)
        for key in keys
        if getattr(block, key) is not None and not (coded and key == "momentum_buffer")
    }
    block = block._replace(**{key: lay_out(tensor) for key, tensor in held.items()})
    return block._replace(param=torch.nn.Parameter(block.param, requires_grad=False))


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def transposed(tensor):
    return tensor.t().contiguous().t()


def with_gaps(tensor):
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def blocks_of_every_layout(dtype, state_dtype, stochastic):
    """Blocks that the kernel knows, by what is special about them."""

    def made(*shape):
        return make_block(shape, dtype, state_dtype, stochastic, device=DEVICE)

    row_scale, column_scale = (torch.rand(n, device=DEVICE) + 0.5 for n in (44, 96))
    repeated = made(48, 96)
    return {
        "whole groups": made(140, 64),
        "odd rows": made(65, 77),
        "a vector": made(130),
        "nothing": None,
        "channels last": laid_out(made(40, 32, 3, 3), channels_last),
        "odd channels last": laid_out(made(40, 7, 5, 3), channels_last),
        "only the parameter": laid_out(made(40, 7, 5, 3), channels_last, ["param"]),
        "only the gradient": laid_out(made(44, 8, 4, 3), channels_last, ["grad"]),
        "transposed": laid_out(made(66, 64), transposed),
        "gaps": laid_out(made(48, 96), with_gaps),
        "one row for all": repeated._replace(grad=repeated.grad[:1].expand(48, 96)),
        "a part": made(48, 96)._replace(start=5 * 200 + 32, pitch=200),
        "fine": made(44, 96)._replace(row_scale=row_scale, column_scale=column_scale),
        "fine rows": laid_out(made(44, 8, 4, 3), channels_last)._replace(
            row_scale=row_scale
        ),
        "fine columns": laid_out(made(44, 8, 4, 3), channels_last)._replace(
            column_scale=column_scale
        ),
    }


def test_tensors_that_lie_alike_share_the_launch_of_plain_ones(launches):
    plain = make_block((40, 32, 3, 3), torch.bfloat16, None, False, device=DEVICE)
    matrix = make_block((64, 64), torch.bfloat16, None, False, device=DEVICE)
    blocks = [
        plain,
        laid_out(plain, channels_last),
        laid_out(matrix, transposed),
        laid_out(plain, lambda t: t.transpose(0, 2).contiguous().transpose(0, 2)),
    ]
    triton.update(blocks, OPTIONS["plain"])
    assert launches.layouts() == ["run"]


IN_ORDER = {
    "whole groups": "run",
    "odd rows": "run",
    "a vector": "run",
    "a part": "rows",
    "fine": "rows",
}
IN_OTHER_ORDERS = {
    "channels last": "reordered",
    "odd channels last": "reordered",
    "only the parameter": "gathered",
    "only the gradient": "gathered",
    "transposed": "gathered",
    "gaps": "gathered",
    "one row for all": "gathered",
    "fine rows": "reordered",
    "fine columns": "reordered",
}


def test_what_lies_alike_row_by_row_is_updated_in_the_order_of_memory(launches):
    blocks = blocks_of_every_layout(torch.bfloat16, None, None)
    for name, layout in (IN_ORDER | IN_OTHER_ORDERS).items():
        triton.update([blocks[name]], OPTIONS["plain"])
        assert launches.layouts()[-1] == layout, name


def test_what_has_codes_is_updated_in_their_order(launches):
    blocks = blocks_of_every_layout(torch.bfloat16, "int8", None)
    layouts = IN_ORDER | dict.fromkeys(IN_OTHER_ORDERS, "gathered")
    for name, layout in layouts.items():
        assert blocks[name].momentum_scale is not None or name == "a vector"
        triton.update([blocks[name]], OPTIONS["plain"])
        assert launches.layouts()[-1] == layout, name


def with_every_other(tensor):
    return torch.stack([tensor, tensor], dim=-1).flatten(-2)[..., ::2]


STRANGE = {
    "another dtype of the gradient": lambda b: b._replace(grad=b.grad.float()),
    "a negated view": lambda b: b._replace(grad=torch._neg_view(b.grad)),
    "no memory": lambda b: b._replace(
        grad=torch._efficientzerotensor((64, 96), dtype=b.grad.dtype, device=DEVICE)
    ),
    "another device": lambda b: b._replace(scale=b.scale.to("meta")),
    "codes with gaps": lambda b: b._replace(
        momentum_buffer=with_every_other(b.momentum_buffer)
    ),
    "their scales": lambda b: b._replace(
        momentum_scale=with_every_other(b.momentum_scale)
    ),
    "scales of rows": lambda b: b._replace(
        row_scale=with_every_other(torch.ones(64, device=DEVICE))
    ),
    "scales of columns": lambda b: b._replace(
        column_scale=with_every_other(torch.ones(96, device=DEVICE))
    ),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_what_the_kernel_cannot_reach_is_not_known(change):
    block = make_block((64, 96), torch.bfloat16, "int8", None, device=DEVICE)
    assert triton.knows(block)
    assert not triton.knows(change(block))


def test_rows_beyond_31_bits_are_left_to_the_reference():
    # Never touched, so that it takes no memory of a CPU.
    far = torch.empty(2**31 + 2, dtype=torch.bfloat16, device=DEVICE)
    block = make_block((2, 2), torch.bfloat16, None, None, device=DEVICE)
    for step, is_known in ((2**31 - 1, True), (2**31, False)):
        grad = far.as_strided((2, 2), (1, step))
        assert triton.knows(block._replace(grad=grad)) == is_known


def test_a_look_ahead_leaves_targets_beyond_31_bits_to_torch(monkeypatch):
    left, cols = [], 2**30 + 2
    monkeypatch.setattr(triton.along, "look_ahead", lambda b, *_: left.extend(b))
    monkeypatch.setattr(triton, "Table", lambda blocks: MagicMock())
    far = torch.empty(2 * cols, dtype=torch.bfloat16, device=DEVICE)
    swapped = far.view(cols, 2).t()
    block = make_block((2, 2), torch.bfloat16, None, False, device=DEVICE)
    block = block._replace(param=swapped, grad=swapped, momentum_buffer=swapped)
    assert triton.knows(block)
    triton.look_ahead([block], [far.view(2, cols)], OPTIONS["plain"])
    assert len(left) == 1


# Tables


def addresses(blocks, rows):
    return [
        0 if b is None or i not in rows else b.grad.data_ptr()
        for i, b in enumerate(blocks)
    ]


def with_new_grads(blocks):
    """The same blocks whose gradients are others that lie as the old ones did."""
    return [b and b._replace(grad=other_than(b.grad)) for b in blocks]


def other_than(grad):
    numel = grad.untyped_storage().nbytes() // grad.element_size()
    entries = grad.as_strided((numel,), (1,), 0) * 0.5
    return entries.as_strided(grad.shape, grad.stride(), grad.storage_offset())


def after_step(blocks, options, rows):
    """Copies of all blocks, some of them a step later."""
    expected = [b and copy_of(b) for b in blocks]
    moved = [expected[i] for i in rows if expected[i] is not None]
    reference.update(moved, options)
    advance(moved)
    return expected


def assert_stepped(blocks, expected, rows):
    for i, (block, other) in enumerate(zip(blocks, expected, strict=True)):
        if block is None:
            continue
        here = copy_of(block)
        assert_equal_blocks(here, other)
        for key in ("param", "momentum_buffer", "momentum_scale", "rounding_seed"):
            held, was = getattr(here, key), getattr(other, key)
            if was is not None and (i not in rows or key == "rounding_seed"):
                assert torch.equal(held, was)


STORED = [
    (torch.float32, None, False),
    (torch.float32, "none", False),
    (torch.float32, "bfloat16", None),
    (torch.bfloat16, None, None),
    (torch.bfloat16, None, False),
    (torch.bfloat16, "int8", None),
    (torch.bfloat16, "int4", None),
    (torch.float32, "int8", None),
    (torch.float32, "int4", False),
]


@pytest.mark.parametrize(("dtype", "state_dtype", "stochastic"), STORED)
def test_a_table_equals_the_reference_at_every_step(dtype, state_dtype, stochastic):
    named = blocks_of_every_layout(dtype, state_dtype, stochastic)
    blocks = list(named.values())
    assert all(b is None or triton.knows(b) for b in blocks)
    table = triton.Table(blocks)
    everything = set(range(len(blocks)))
    steps = [
        ("starting", everything, False),
        ("plain", everything, True),
        ("plain", everything - {0, 4, 9}, False),
        ("light", {1, 8}, True),
        ("tensor-lr", everything, False),
    ]
    for name, rows, has_new_grads in steps:
        if has_new_grads:
            blocks = with_new_grads(blocks)
        expected = after_step(blocks, OPTIONS[name], rows)
        assert table.holds(0, len(blocks))
        table.run(addresses(blocks, rows), OPTIONS[name])
        assert_stepped(blocks, expected, rows)


@pytest.mark.parametrize("state_dtype", [None, "int8", "int4"])
def test_runs_of_one_block_and_of_neighbours_touch_no_others(state_dtype):
    blocks = list(blocks_of_every_layout(torch.bfloat16, state_dtype, None).values())
    table = triton.Table(blocks)
    whole = (0, len(blocks))
    runs = [(0, 1), (4, 1), whole, (5, 4), (3, 1), (4, 1), (4, 1), (9, 6), whole]
    for step, (first, count) in enumerate(runs):
        rows = range(first, first + count)
        if step != 6:
            blocks = with_new_grads(blocks)
        expected = after_step(blocks, OPTIONS["plain"], rows)
        grads = addresses(blocks, rows)[first : first + count]
        table.run(grads, OPTIONS["plain"], first)
        assert_stepped(blocks, expected, rows)


def test_a_block_of_many_programs_is_found_behind_others(launches):
    shapes = [(3, 64), (300, 130), (5,), (200, 64)]
    blocks = [
        make_block(shape, torch.bfloat16, None, None, seed=i, device=DEVICE)
        for i, shape in enumerate(shapes)
    ]
    table = triton.Table(blocks)
    for row, programs in ((1, 10), (3, 4), (0, 1)):
        expected = after_step(blocks, OPTIONS["plain"], [row])
        table.run([blocks[row].grad.data_ptr()], OPTIONS["plain"], row)
        assert_stepped(blocks, expected, [row])
        assert launches.programs[-1] == programs


def test_nothing_is_launched_where_nothing_has_a_gradient(launches):
    block = make_block((64, 96), torch.bfloat16, None, None, device=DEVICE)
    table = triton.Table([None, block])
    table.run([0, 0], OPTIONS["plain"])
    table.run([0], OPTIONS["plain"], 0)
    assert launches.programs == []
    assert block.rounding_seed == 4


@pytest.fixture
def everywhere(monkeypatch):
    """Lets `fused=True` mean this execution on a CPU too."""
    kernel = Kernel(triton.Table, triton.knows)
    execution = Execution(triton.update, triton.look_ahead, triton.finish, kernel)

    def chosen(param, *, foreach, fused):
        return execution if fused else choose(param, foreach=foreach, fused=fused)

    monkeypatch.setattr("saiopt.optimizer.binding.choose", chosen)


def trained_by(optimizer, params):
    """Steps with missing gradients, new ones, and steps of one parameter."""
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for param in params:
            grad = torch.randn(param.shape, generator=generator).to(param)
            param.grad = torch.empty_like(param).copy_(grad)
        late = params[step % len(params)]
        kept, late.grad = late.grad, None
        optimizer.step()
        if step > 1:
            late.grad = kept
            optimizer.step_parameter(late, optimizer.param_groups[0], 0)
    return [param.detach() for param in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, "int8", "int4"])
def test_an_optimizer_with_tables_follows_one_without(
    state_dtype, dtype, everywhere, tables
):
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        shapes = [(64, 96), (130,), (48, 8, 4, 3)]
        params = [torch.nn.Parameter(torch.randn(s).to(DEVICE, dtype)) for s in shapes]
        params[2].data = channels_last(params[2].data)
        optimizer = SGDSaI(params, 1e-2, fused=fused, state_dtype=state_dtype)
        results.append(trained_by(optimizer, params))
        alive = [ref() for ref in tables if ref()]
        assert bool(alive) == fused
        del optimizer, params, alive
    for param, expected in zip(*results, strict=True):
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(param, expected, rtol=tolerance, atol=tolerance)
        if dtype == torch.bfloat16:
            assert (param != expected).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
def test_orthogonal_steps_follow_the_references(
    state_dtype, dtype, everywhere, launches
):
    if DEVICE == "cuda":
        pytest.skip("directions are of bfloat16 there, and differ by its roundings")
    params, expected = (
        orthogonal_steps(dtype, state_dtype, fused=fused) for fused in (True, False)
    )
    assert any(options["LOOKS_AHEAD"] for options in launches.options)
    for param, other in zip(params, expected, strict=True):
        assert_neighbours(param, other, 4)


@pytest.mark.parametrize("seed", [2**31 - 1, -(2**31), -1])
def test_seeds_wrap_around(seed):
    block = make_block((64, 96), torch.bfloat16, "int8", None, device=DEVICE)
    block.rounding_seed.fill_(seed)
    table = triton.Table([block])
    for _ in range(2):
        expected = after_step([block], OPTIONS["plain"], [0])
        table.run([block.grad.data_ptr()], OPTIONS["plain"])
        assert_stepped([block], expected, [0])


def test_an_update_leaves_the_seeds_to_its_caller():
    block = make_block((64, 96), torch.bfloat16, None, None, device=DEVICE)
    triton.update([block], OPTIONS["plain"])
    assert block.rounding_seed == 4


def test_a_table_on_the_device_is_kept_and_only_gradients_are_written_again(tables):
    blocks = [b for b in blocks_and_expected()[0] if b.momentum_scale is None]
    table = triton.Table(blocks)
    assert tables == []
    rows = range(len(blocks))
    table.run(addresses(blocks, rows), OPTIONS["plain"])
    made = [ref() for ref in tables]
    before = [t.values.clone() for t in made]
    places = [t.values.data_ptr() for t in made]
    blocks = with_new_grads(blocks)
    table.run(addresses(blocks, rows), OPTIONS["plain"])
    assert len(tables) == len(made)
    assert places == [t.values.data_ptr() for t in made]
    grad = triton.Row._fields.index("grad")
    found = []
    for held, was in zip(made, before, strict=True):
        found += held.values[:, grad].tolist()
        same = held.values.clone()
        same[:, grad] = was[:, grad]
        assert torch.equal(same, was)
    assert sorted(found) == sorted(b.grad.data_ptr() for b in blocks)


def test_tables_on_the_device_die_with_their_owner(tables):
    block = make_block((64, 8, 3, 3), torch.bfloat16, "int8", None, device=DEVICE)
    block = laid_out(block, channels_last)
    table = triton.Table([block])
    table.run([block.grad.data_ptr()], OPTIONS["plain"])
    held = [weakref.ref(t) for t in (tables[0]().values, tables[0]().owners)]
    held += map(weakref.ref, tables[0]()._maps.values())
    assert len(held) == 3
    assert all(ref() is not None for ref in held)
    del table
    assert all(ref() is None for ref in (*tables, *held))


def test_a_stream_keeps_a_table_and_a_capture_gets_a_new_one(monkeypatch):
    block = make_block((64, 96), torch.float32, None, None)
    kind = triton._kind(block)._replace(device=torch.device("cuda", 0))
    launch = triton._Launch(kind, {0: block})
    monkeypatch.setattr(launch, "_make_table", object)

    def table(stream, capturing=False):
        current = SimpleNamespace(stream_id=stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
        monkeypatch.setattr(
            torch.cuda, "is_current_stream_capturing", lambda: capturing
        )
        return launch._table()

    first, second = table(0), table(1)
    captured = [table(1, capturing=True) for _ in range(2)]
    assert len({first, second, *captured}) == 4
    assert (table(0), table(1)) == (first, second)


def test_an_update_leaves_no_table_behind(tables):
    blocks, _ = blocks_and_expected()
    triton.update(blocks, OPTIONS["plain"])
    assert len(tables) > 1
    assert all(ref() is None for ref in tables)


def test_a_table_keeps_no_tensor_alive_but_seeds():
    block = make_block((64, 96), torch.bfloat16, "int8", None, device=DEVICE)
    block = block._replace(row_scale=torch.ones(64, device=DEVICE))
    table = triton.Table([block])
    table.run([block.grad.data_ptr()], OPTIONS["plain"])
    kept = {
        key: weakref.ref(tensor)
        for key, tensor in block._asdict().items()
        if isinstance(tensor, torch.Tensor)
    }
    del block
    assert [key for key, held in kept.items() if held()] == ["rounding_seed"]


def test_a_table_made_under_inference_mode_serves_outside_of_it():
    block = make_block((64, 96), torch.bfloat16, "int8", None, device=DEVICE)
    table = triton.Table([block])
    with torch.inference_mode():
        table.run([block.grad.data_ptr()], OPTIONS["plain"])
    [block] = with_new_grads([block])
    expected = after_step([block], OPTIONS["plain"], [0])
    table.run([block.grad.data_ptr()], OPTIONS["plain"])
    assert_stepped([block], expected, [0])


def test_a_gradient_that_moves_to_an_odd_address_is_no_longer_called_aligned(launches):
    block = make_block((64, 32), torch.float32, None, None, device=DEVICE)
    shifted = torch.empty(64 * 32 + 1, device=DEVICE)[1:].view(64, 32)
    shifted.copy_(block.grad)
    aligned = torch.empty(64 * 32 + 3, device=DEVICE)
    aligned = aligned[-aligned.data_ptr() // 4 % 4 :][: 64 * 32].view(64, 32)
    aligned.copy_(block.grad)
    table = triton.Table([block])
    for grad in (aligned, shifted, aligned):
        block = block._replace(grad=grad)
        expected = after_step([block], OPTIONS["plain"], [0])
        table.run([grad.data_ptr()], OPTIONS["plain"])
        assert_stepped([block], expected, [0])
    assert [o["ALIGNED"] for o in launches.options] == [True, False, True]


def test_addresses_that_are_not_multiples_of_16_are_right():
    block = make_block((64, 32), torch.float32, None, None)
    grad = torch.empty(64 * 32 + 1)[1:].view(64, 32).copy_(block.grad)
    expected = copy_of(block)
    block = copy_of(block, DEVICE)
    shifted = torch.empty(64 * 32 + 1, device=DEVICE)[1:].view(64, 32).copy_(grad)
    assert shifted.data_ptr() % 16 != 0
    triton.update([block._replace(grad=shifted)], OPTIONS["plain"])
    reference.update([expected], OPTIONS["plain"])
    assert_all_equal([block], [expected])


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from saiopt.update import Coefficients, triton as execution

def ptx(dtype, momentum, layout, ahead, capability):
    cuda, target = torch.device("cuda", 0), torch.float32 if ahead else dtype
    kind = execution.Kind(cuda, target, dtype, momentum, True, layout, True, True)
    options = Coefficients(0.1, 0.9, 0.1, maximize=False)
    given = execution.arguments(kind, options, looks_ahead=ahead)
    names = execution.update_kernel.arg_names
    types = {name: "constexpr" if name.isupper() else "fp32" for name in names}
    types |= {"table": "*i64", "owners": "*i32", "first_program": "i32"}
    constants = {(names.index(n),): v for n, v in given.items() if n.isupper()}
    source = ASTSource(execution.update_kernel, types, constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target, execution.LAUNCH).asm["ptx"]

for dtype, momentum, layout, ahead in (
    (torch.float32, torch.float32, "run", False),
    (torch.bfloat16, torch.bfloat16, "run", False),
    (torch.float32, torch.uint8, "run", False),
    (torch.float32, torch.float32, "rows", False),
    (torch.bfloat16, torch.bfloat16, "reordered", False),
    (torch.bfloat16, torch.int8, "gathered", False),
    (torch.float32, None, "run", True),
    (torch.float32, torch.float32, "run", True),
    (torch.float16, torch.int8, "run", True),
    (torch.bfloat16, torch.uint8, "rows", True),
    (torch.bfloat16, torch.bfloat16, "run", True),
):
    for capability in (80, 90):
        code = ptx(dtype, momentum, layout, ahead, capability)
        print("ld.global.v4.b32" in code and "st.global.v4.b32" in code)
"""


def test_the_kernel_compiles_for_gpus_and_moves_16_bytes_at_a_time(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True"] * 22


def test_a_first_step_compiles_what_later_steps_need():
    kind = triton._kind(make_block((64, 96), torch.float32, "int8", None))
    first, later = (triton.arguments(kind, OPTIONS[k]) for k in ("starting", "plain"))
    assert {n for n in first if first[n] != later[n]} == {"weight"}


# On a GPU


def params_and_optimizer(lr=1e-2, **options):
    torch.manual_seed(0)
    shapes = [(300, 200), (200,), (64, 65), (), (64, 32, 3, 3)]
    params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
    params[-1].data = params[-1].data.contiguous(memory_format=torch.channels_last)
    for param in params:
        param.grad = torch.randn_like(param)
    return params, SGDSaI(params, lr, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, torch.int8, "int4"])
def test_the_chosen_execution_equals_the_reference_on_a_gpu(state_dtype):
    results = []
    for fused in (True, False):
        params, optimizer = params_and_optimizer(fused=fused, state_dtype=state_dtype)
        for _ in range(5):
            optimizer.step()
        results.append(params)
    for param, expected in zip(*results, strict=True):
        torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_stepping_in_backward_equals_stepping_after_it_on_a_gpu():
    params, optimizer = params_and_optimizer(fused=True, state_dtype="int8")
    twins, other = params_and_optimizer(fused=True, state_dtype="int8")
    optimizer.zero_grad()
    step_in_backward(optimizer)
    for step in range(4):
        sum((p * (p.detach() + step)).sum() for p in params).backward()
        other.zero_grad()
        sum((p * (p.detach() + step)).sum() for p in twins).backward()
        other.step()
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.gpu
@pytest.mark.parametrize("lr", [1e-2, "tensor"])
def test_no_step_after_calibration_waits_for_the_gpu(lr):
    lr = torch.tensor(1e-2, device="cuda") if lr == "tensor" else lr
    params, optimizer = params_and_optimizer(lr, fused=True, state_dtype="int4")
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for late in range(len(params)):
            for param in params:
                param.grad = param.grad + 1
            kept, params[late].grad = params[late].grad, None
            optimizer.step()
            params[late].grad = kept
            optimizer.step_parameter(params[late], optimizer.param_groups[0], late)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_each_stream_has_tables_of_its_own(tables):
    params, optimizer = params_and_optimizer(fused=True, state_dtype="int8")
    twins, other = params_and_optimizer(fused=True, state_dtype="int8")
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]
    num_tables = []
    for step in range(6):
        stream = streams[step % 2]
        stream.wait_stream(streams[1 - step % 2])
        with torch.cuda.stream(stream):
            for param in params:
                param.grad = param.grad + 1
            optimizer.step()
        num_tables.append(sum(ref() is not None for ref in tables))
    torch.cuda.synchronize()
    # The first step only measures, by tables that it does not keep.
    assert num_tables[0] == 0
    assert num_tables[2:] == [2 * num_tables[1]] * 4
    for _ in range(6):
        for twin in twins:
            twin.grad = twin.grad + 1
        other.step()
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.gpu
@pytest.mark.parametrize("state_dtype", [None, torch.int8])
def test_a_captured_step_repeats_and_later_steps_do_not_disturb_it(state_dtype):
    lr = torch.tensor(1e-2, device="cuda")
    options = {"fused": True, "state_dtype": state_dtype}
    params, optimizer = params_and_optimizer(lr, **options)
    twins, other = params_and_optimizer(lr.clone(), **options)
    optimizer.step()
    other.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    other.step()
    for param, twin in zip(params, twins, strict=True):
        kept, param.grad = param.grad, param.grad + 1
        twin.grad = twin.grad + 1
        optimizer.step()
        other.step()
        param.grad, twin.grad = kept, twin.grad - 1
    lr.fill_(0.5)
    other.param_groups[0]["lr"].fill_(0.5)
    graph.replay()
    other.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_large_block_is_indexed_beyond_32_bits():
    size = 2**31 + 64
    param = torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16, device="cuda"))
    param.requires_grad_(False)
    block = triton.Block(
        param, torch.ones_like(param), None, torch.ones(()).cuda(), None
    )
    triton.update([block], Coefficients(0.5, 0.0, 0.0, maximize=False))
    assert param[-1] == param[0] == -0.5


def test_directions_are_stepped_along_with_the_tables_of_the_step_before(tables):
    blocks = [
        make_block((96, 64), torch.float32, None, None, seed=i, device=DEVICE)
        for i in range(2)
    ]
    options = OPTIONS["plain"]._replace(direction=lambda stack: stack.sign_())
    triton._tables.clear()
    triton.update(blocks, options)
    made = len(tables)
    expected = [copy_of(b) for b in blocks]
    for block in (*blocks, *expected):
        block.grad.mul_(-2)
    triton.update(blocks, options)
    foreach.update(expected, options)
    # One to look ahead, whose stack may lie elsewhere, and one to step.
    assert made == 2
    assert len(tables) <= 3
    for block, other in zip(blocks, expected, strict=True):
        assert_equal_blocks(block, other)


def matrices_and_optimizer(**options):
    torch.manual_seed(0)
    shapes = [(96, 64), (96, 64), (64, 96), (32, 16, 3, 3)]
    params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params, SGDSaI(params, 1e-2, scaling="orthogonal", fused=True, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
def test_an_orthogonal_step_never_waits_for_the_gpu_and_can_be_captured(state_dtype):
    params, optimizer = matrices_and_optimizer(state_dtype=state_dtype)
    twins, other = matrices_and_optimizer(state_dtype=state_dtype)
    for stepping in (optimizer, other):
        stepping.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stepping in (optimizer, other):
            stepping.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        graph.replay()
        other.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-5)
