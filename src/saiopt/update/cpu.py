"""The update rule on CPUs in one pass: 20 bytes per float32 entry, one call for all.

Momentum in 8 and 4 bits is decoded, averaged and coded anew in registers: 14.125 and
13.125 bytes per entry of a float32 parameter, two more for its scales being the eighth.
The kernel is compiled on the machine that runs it (:mod:`saiopt.update.library`). It
uses fused multiply-add where the processor has it, and else deviates from the reference
only in rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from saiopt.low_bit import SHIPPED, code_of

from . import library, reference
from .blocks import Block, Coefficients
from .tiles import matrix_shape

# As kernel.c numbers them.
_PARAM_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_MOMENTUM_KINDS = {
    None: 0,
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float64: 3,
    torch.int8: 4,
    torch.uint8: 5,
}
# Fewer entries than this are not worth a thread of their own.
_ENTRIES_PER_THREAD = 2**16


class _Row(ctypes.Structure):
    """Mirror `struct block` of kernel.c."""

    _fields_ = (
        ("param", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("momentum", ctypes.c_void_p),
        ("momentum_scale", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("seed", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("param_kind", ctypes.c_int64),
        ("momentum_kind", ctypes.c_int64),
    )


class _Rule(ctypes.Structure):
    """Mirror `struct rule` of kernel.c."""

    _fields_ = (
        ("weight", ctypes.c_double),
        ("shrink", ctypes.c_double),
        ("lr", ctypes.c_double),
        ("from_grad", ctypes.c_int64),
        ("forgets", ctypes.c_int64),
    )


def unavailable(params: Sequence[Tensor]) -> str:
    """Return why this execution cannot update such parameters, "" if it can.

    Args:
        params: the parameters.

    Returns:
        A sentence, or "".
    """
    for param in params:
        if not param.is_cpu:
            return f"a parameter is on {param.device}"
        if param.dtype not in _PARAM_KINDS:
            return f"a parameter is {param.dtype}"
    loaded = library.load()
    return loaded if isinstance(loaded, str) else ""


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to all blocks in one call.

    Blocks that the kernel does not know go through :mod:`saiopt.update.reference`:
    those with tensors that are not contiguous, with scales that vary within the block,
    with gradients of another dtype, and with codes that a study put in place.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.

    Raises:
        RuntimeError: there is no kernel.
    """
    known, others = [], []
    for block in blocks:
        (known if _knows(block) else others).append(block)
    reference.update(others, coefficients)
    known = [b for b in known if b.param.numel() > 0]
    if not known:
        return
    kernel = library.load()
    if isinstance(kernel, str):
        raise RuntimeError(f"the fused execution is not available: {kernel}")
    entries = sum(b.param.numel() for b in known)
    kernel.saiopt_update(
        (_Row * len(known))(*map(_row, known)),
        ctypes.c_int64(len(known)),
        ctypes.byref(_rule(coefficients)),
        min(torch.get_num_threads(), entries // _ENTRIES_PER_THREAD + 1),
    )
    # What autograd saved of the parameters is no longer what they are.
    torch.autograd.graph.increment_version(_written(known))


def _knows(block: Block) -> bool:
    param, buffer = block.param, block.momentum_buffer
    if block.grad.dtype != param.dtype or block.scale.dim() > 0:
        return False
    dtype = None if buffer is None else buffer.dtype
    if (param.dtype == torch.float64) != (dtype == torch.float64) and dtype:
        return False
    if param.dtype not in _PARAM_KINDS or dtype not in _MOMENTUM_KINDS:
        return False
    if dtype in SHIPPED and code_of(dtype) != SHIPPED[dtype]:
        return False
    return all(_is_plain(t) for t in block if t is not None)


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor's entries lie in memory as they read."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _row(block: Block) -> _Row:
    rows, cols = matrix_shape(block.param)
    buffer = block.momentum_buffer
    return _Row(
        block.param.data_ptr(),
        block.grad.data_ptr(),
        _address(buffer),
        _address(block.momentum_scale),
        block.scale.data_ptr(),
        _address(block.rounding_seed),
        rows,
        cols,
        _PARAM_KINDS[block.param.dtype],
        _MOMENTUM_KINDS[None if buffer is None else buffer.dtype],
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _rule(coefficients: Coefficients) -> _Rule:
    lr = float(coefficients.lr)
    weight = 1 - coefficients.momentum
    # As torch.lerp, from the nearer end, so that the result lies between both.
    from_grad = weight >= 0.5
    return _Rule(
        weight - 1 if from_grad else weight,
        1 - lr * coefficients.weight_decay,
        coefficients.sign * lr,
        from_grad,
        coefficients.momentum == 0,
    )


def _written(blocks: Sequence[Block]) -> list[Tensor]:
    return [t for b in blocks for t in (b.param, b.momentum_buffer) if t is not None]
