import os
import subprocess
import sys

import pytest
import torch
from executions import OPTIONS, assert_equal_blocks, copy_of, make_block

from saiopt import SGDSaI
from saiopt.update import Coefficients, reference

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
    """Stands before the kernel and counts its launches and programs."""

    def __init__(self, kernel):
        self.kernel, self.programs = kernel, []

    def __getitem__(self, grid):
        self.programs.append(grid[0])
        return self.kernel[grid]


def test_blocks_of_a_kind_share_a_launch(monkeypatch):
    launches = Launches(triton.update_kernel)
    monkeypatch.setattr(triton, "update_kernel", launches)
    blocks, _ = blocks_and_expected()
    many = [copy_of(blocks[0]._replace(grad=blocks[0].grad + i)) for i in range(9)]
    triton.update([*many, blocks[0]], OPTIONS["plain"])
    # 40 × 64 entries are 80 groups, one program.
    assert launches.programs == [10]


def test_several_steps_with_old_and_new_gradients_equal_the_reference():
    blocks, expected = blocks_and_expected()
    for step in range(4):
        if step == 2:
            blocks = [b._replace(grad=b.grad.clone() + 1) for b in blocks]
            expected = [b._replace(grad=b.grad + 1) for b in expected]
        triton.update(blocks, OPTIONS["plain"])
        reference.update(expected, OPTIONS["plain"])
    assert_all_equal(blocks, expected, spacings=4)


def test_a_table_is_kept_while_the_addresses_stay():
    blocks, _ = blocks_and_expected()
    triton.update(blocks, OPTIONS["plain"])
    before = triton._kept_table.cache_info()
    triton.update([b._replace(grad=b.grad.clone()) for b in blocks], OPTIONS["plain"])
    after = triton._kept_table.cache_info()
    assert after.misses == before.misses
    assert after.hits > before.hits


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

def ptx(dtype, momentum, capability):
    cuda = torch.device("cuda", 0)
    kind = execution.Kind(cuda, dtype, momentum, True, True, True)
    options = Coefficients(0.1, 0.9, 0.1, maximize=False)
    given = execution.arguments(kind, options)
    names = execution.update_kernel.arg_names
    types = {name: "constexpr" if name.isupper() else "fp32" for name in names}
    types |= {"table": "*i64", "owners": "*i32"}
    constants = {(names.index(n),): v for n, v in given.items() if n.isupper()}
    source = ASTSource(execution.update_kernel, types, constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target, execution.LAUNCH).asm["ptx"]

for dtype, momentum in (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.uint8),
):
    for capability in (80, 90):
        code = ptx(dtype, momentum, capability)
        print("ld.global.v4.b32" in code and "st.global.v4.b32" in code)
"""


def test_the_kernel_compiles_for_gpus_and_moves_16_bytes_at_a_time(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True"] * 6


# On a GPU


def params_and_optimizer(lr=1e-2, **options):
    torch.manual_seed(0)
    shapes = [(300, 200), (200,), (64, 65), ()]
    params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
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
@pytest.mark.parametrize("lr", [1e-2, "tensor"])
def test_no_step_after_calibration_waits_for_the_gpu(lr):
    lr = torch.tensor(1e-2, device="cuda") if lr == "tensor" else lr
    params, optimizer = params_and_optimizer(lr, fused=True, state_dtype="int4")
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for param in params:
                param.grad = param.grad + 1
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
