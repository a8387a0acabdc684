"""What every execution of the update rule must do: one table, checked against one rule.

A case is a parameter's dtype, its momentum's storage, and whether results round
stochastically; every case meets every option and shape.
"""

import importlib.util
from itertools import product

import torch
from torch import nn

from saiopt import SGDSaI
from saiopt.low_bit import dequantize, dither_bits
from saiopt.optimizer import state
from saiopt.scaling import matrix_shape
from saiopt.update import (
    Block,
    Coefficients,
    advance,
    along,
    cpu,
    foreach,
    library,
    reference,
    two_pass,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    (dtype, state_dtype, stochastic)
    for dtype, state_dtype, stochastic in product(
        FLOATS,
        (None, "none", "float32", "bfloat16", "int8", "int4"),
        (None, False),
    )
    if stochastic is None or "float32" not in (str(dtype)[6:], state_dtype)
] + [(torch.float64, None, None), (torch.float64, "int8", None)]

OPTIONS = {
    "plain": Coefficients(0.01, 0.9, 0.1, maximize=False),
    "starting": Coefficients(0.01, 0.0, 0.1, maximize=False),
    "light": Coefficients(0.01, 0.3, 0.1, maximize=False),
    "undecayed": Coefficients(0.01, 0.9, 0.0, maximize=False),
    "maximize": Coefficients(0.01, 0.9, 0.1, maximize=True),
    "tensor-lr": Coefficients(torch.tensor(0.01), 0.9, 0.1, maximize=False),
}

# Every case meets these options; two cases meet them all.
PAIRS = [(case, OPTIONS[name]) for case in CASES for name in ("plain", "starting")]
PAIRS += [
    (case, options)
    for case in (
        (torch.float32, None, None),
        (torch.bfloat16, "int4", None),
    )
    for options in OPTIONS.values()
]

# Odd columns, whole groups, many dimensions, short rows, vectors, one entry, none.
SHAPES = [
    (70, 77),
    (33, 160),
    (68, 3, 5, 7),
    (5000, 1),
    (2, 2055),
    (77,),
    (1,),
    (),
    (0, 9),
]


def _on_cuda(update):
    """Apply an update of blocks on a GPU to blocks on the CPU."""

    def moved(blocks, *others):
        there = [copy_of(b, "cuda") for b in blocks]
        *targets, options = others
        slots = [[t.cuda() for t in of] for of in targets]
        update(there, *slots, options)
        for of, results in zip(targets, slots, strict=True):
            for target, result in zip(of, results, strict=True):
                target.copy_(result)
        for block, result in zip(blocks, there, strict=True):
            for tensor, values in zip(block, result, strict=True):
                if isinstance(tensor, torch.Tensor):
                    tensor.copy_(values)

    return moved


def executions():
    """All executions but the reference that this machine can run, by name."""
    found = {"foreach": foreach.update, "two_pass": two_pass.update}
    if not isinstance(library.load(), str):
        found["cpu"] = cpu.update
    if importlib.util.find_spec("triton") is not None:
        from saiopt.update import triton

        on_gpu = torch.cuda.is_available()
        found["triton"] = _on_cuda(triton.update) if on_gpu else triton.update
    return found


def look_aheads():
    """All look-aheads but the reference's that this machine can run, by name."""
    found = {"torch": along.look_ahead}
    if not isinstance(library.load(), str):
        found["cpu"] = cpu.look_ahead
    if importlib.util.find_spec("triton") is not None:
        from saiopt.update import triton

        on_gpu = torch.cuda.is_available()
        found["triton"] = _on_cuda(triton.look_ahead) if on_gpu else triton.look_ahead
    return found


def make_block(shape, dtype, state_dtype, stochastic, *, seed=0, device="cpu"):
    """A block with random contents whose momentum has run for one step."""
    generator = torch.Generator().manual_seed(seed)
    param, first, grad = (
        torch.randn(shape, generator=generator).to(dtype) for _ in range(3)
    )
    options = {"state_dtype": None if state_dtype == "none" else state_dtype}
    held = {} if state_dtype == "none" else state.momentum(param, options)
    rounding_seed = torch.tensor(3, dtype=torch.int32) if stochastic is None else None
    block = Block(
        nn.Parameter(param, requires_grad=False),
        first,
        held.get("momentum_buffer"),
        torch.tensor(2.5),
        rounding_seed,
        held.get("momentum_scale"),
    )
    reference.update([block], Coefficients(0.0, 0.0, 0.0, maximize=False))
    advance([block])
    return copy_of(block._replace(grad=grad), device)


def copy_of(block, device="cpu"):
    copies = (
        t.detach().clone().to(device) if isinstance(t, torch.Tensor) else t
        for t in block
    )
    copied = Block(*copies)
    return copied._replace(param=nn.Parameter(copied.param, requires_grad=False))


def orthogonal_steps(dtype, state_dtype, **execution):
    """Parameters after five steps, two of one shape and one of four dimensions."""
    generator = torch.Generator().manual_seed(0)

    def random(shape):
        return torch.randn(shape, generator=generator).to(dtype)

    shapes = [(48, 65), (64, 64), (64, 64), (40, 7, 3, 3)]
    params = [nn.Parameter(random(shape)) for shape in shapes]
    params[3].data = params[3].data.contiguous(memory_format=torch.channels_last)
    options = {"scaling": "orthogonal", "state_dtype": state_dtype, **execution}
    optimizer = SGDSaI(params, 0.01, **options)
    for _ in range(5):
        for param in params:
            param.grad = random(param.shape)
        optimizer.step()
    return [param.detach() for param in params]


def momentum_of(block):
    """The momentum that a block's state stands for, float32."""
    if block.momentum_scale is None:
        return block.momentum_buffer
    rows, cols = matrix_shape(block.param.shape)
    noise = None
    if block.rounding_seed is not None:
        # The noise of the step that made the codes, which is not advanced yet.
        bits = dither_bits(0, rows * cols, block.rounding_seed + 1)
        noise = bits.view(rows, cols)
    codes = block.momentum_buffer.flatten(1)
    return dequantize(codes, block.momentum_scale, cols, noise)


def assert_equal_blocks(block, expected, *, spacings=1):
    """Equal but for the float32 rounding of intermediate results.

    That rounding may carry a value that rounds stochastically, or a code, to its
    neighbour: at most by one, and in very few entries.
    """
    assert_neighbours(block.param, expected.param, spacings)
    if expected.momentum_buffer is None:
        return
    if expected.momentum_scale is None:
        assert_neighbours(block.momentum_buffer, expected.momentum_buffer, spacings)
        return
    scale = expected.momentum_scale.float()
    torch.testing.assert_close(
        block.momentum_scale.float(), scale, rtol=2**-7, atol=1e-7, equal_nan=True
    )
    steps = torch.nan_to_num(scale).abs().repeat_interleave(32, dim=1)
    exact = momentum_of(expected)
    difference = torch.nan_to_num((momentum_of(block) - exact).abs())
    # A neighbouring scale changes what a code stands for by a spacing of bfloat16.
    allowed = 2**-7 * torch.nan_to_num(exact).abs() + 1e-6
    assert (difference <= steps[:, : exact.shape[1]] + allowed).all()
    assert (difference > allowed).float().mean() < 0.01


def assert_neighbours(values, expected, spacings):
    """Equal to `spacings` of float32, or for narrower dtypes in nearly all entries."""
    narrow = expected.dtype in (torch.bfloat16, torch.float16)
    spacing = torch.finfo(expected.dtype).eps
    values, expected = values.double(), expected.double()
    torch.testing.assert_close(
        values, expected, rtol=spacings * spacing, atol=spacings * 1e-7, equal_nan=True
    )
    if narrow and expected.numel() > 0:
        assert (values != expected).double().mean() <= max(0.01, 1 / expected.numel())
