"""The update rule on CPUs in one pass: 20 bytes per float32 entry, one call for all.

Momentum in 8 and 4 bits is decoded, averaged and coded anew in registers: 14.125 and
13.125 bytes per entry of a float32 parameter, two more for its scales being the eighth.
Scales of rows and columns cost their own bytes. Entries that do not lie in memory as
they read, as those of channels_last weights, are gathered a group at a time.
A look-ahead, for directions of whole matrices, is a pass of its own: it reads m and g,
and writes m and μ m + (1-μ) g in float32, 16 bytes per float32 entry, and with momentum
in 8 and 4 bits 10.125 and 9.125. The direction's step is one without momentum, 12.
The kernel is compiled on the machine that runs it (:mod:`saiopt.update.library`). It
uses fused multiply-add where the processor has it, and else deviates from the reference
only in rounding.
"""

from __future__ import annotations

import array
import ctypes
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saiopt.low_bit import SHIPPED, code_of

from . import along, library, reference
from .blocks import Block, Coefficients

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
        ("momentum", ctypes.c_void_p),
        ("momentum_scale", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("column_scale", ctypes.c_void_p),
        ("seed", ctypes.c_void_p),
        ("param_map", ctypes.c_void_p),
        ("grad_map", ctypes.c_void_p),
        ("momentum_map", ctypes.c_void_p),
        ("param_stride", ctypes.c_int64),
        ("grad_stride", ctypes.c_int64),
        ("momentum_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("pitch", ctypes.c_int64),
        ("by_rows", ctypes.c_int64),
        ("gathers", ctypes.c_int64),
        ("param_kind", ctypes.c_int64),
        ("grad_kind", ctypes.c_int64),
        ("momentum_kind", ctypes.c_int64),
        ("expected", ctypes.c_float),
    )


class _Rule(ctypes.Structure):
    """Mirror `struct rule` of kernel.c."""

    _fields_ = (
        ("weight", ctypes.c_double),
        ("shrink", ctypes.c_double),
        ("lr", ctypes.c_double),
        ("from_grad", ctypes.c_int64),
        ("forgets", ctypes.c_int64),
        ("looks_ahead", ctypes.c_int64),
    )


class _Layout(NamedTuple):
    """Say where the entries of a matrix lie, in entries from the first.

    Args:
        stride: from row to row.
        map: of each column of a row; None where they lie one behind the other.
    """

    stride: int
    map: array.array[int] | None


class Table:
    """Hold the addresses of blocks, for one call after the other.

    It reads and writes memory by address: who holds it makes sure that the tensors are
    where they were.

    Args:
        blocks: those of :func:`knows`; None for what is never updated.
    """

    sees_writes = True

    def __init__(self, blocks: Sequence[Block | None]) -> None:
        self._maps: dict[object, array.array[int]] = {}
        rows = [_Row() if b is None else self._row(b) for b in blocks]
        self._rows = (_Row * len(rows))(*rows)
        self._numels = [0 if b is None else b.param.numel() for b in blocks]
        self._address = ctypes.addressof(self._rows)
        self._kernel = _loaded()

    def holds(self, first: int, count: int) -> bool:
        """Tell whether nobody has written the scales since the table was made.

        Args:
            first: index of the first block to look at.
            count: number of blocks.

        Returns:
            Whether they are what they were.
        """
        return bool(self._kernel.saiopt_holds(self._from(first), count))

    def expect(self, rows: Iterable[int]) -> None:
        """Take the scales of some blocks as they are now for what they should be.

        Args:
            rows: indices of the blocks.
        """
        for i in rows:
            if self._rows[i].scale:
                held = ctypes.c_float.from_address(self._rows[i].scale)
                self._rows[i].expected = held

    def run(
        self, grads: Sequence[int], coefficients: Coefficients, first: int = 0
    ) -> None:
        """Apply the rule to consecutive blocks, and give them new noise.

        Args:
            grads: addresses of the gradients, 0 for a block that is left out.
            coefficients: the numbers that the blocks share.
            first: index of the first block.
        """
        self._call(grads, coefficients, first, advances=True)

    def _call(
        self,
        grads: Sequence[int],
        coefficients: Coefficients,
        first: int,
        *,
        advances: bool = False,
        looks_ahead: bool = False,
    ) -> None:
        addresses = array.array("Q", grads)
        entries = sum(self._numels[first : first + len(grads)])
        self._kernel.saiopt_update(
            self._from(first),
            addresses.buffer_info()[0],
            len(grads),
            _rule(coefficients, looks_ahead=looks_ahead),
            min(torch.get_num_threads(), entries // _ENTRIES_PER_THREAD + 1),
            advances,
        )

    def _from(self, first: int) -> int:
        return self._address + first * ctypes.sizeof(_Row)

    def _row(self, block: Block) -> _Row:
        rows, cols = block.shape
        buffer = block.momentum_buffer
        is_coded = block.momentum_scale is not None
        held = None if is_coded else buffer
        layouts = [self._layout(t, cols) for t in (block.param, block.grad, held)]
        gathers = any(layout != (cols, None) for layout in layouts)
        return _Row(
            block.param.data_ptr(),
            _address(buffer),
            _address(block.momentum_scale),
            block.scale.data_ptr(),
            _address(block.row_scale),
            _address(block.column_scale),
            _address(block.rounding_seed),
            *(layout.map and layout.map.buffer_info()[0] for layout in layouts),
            *(layout.stride for layout in layouts),
            rows,
            cols,
            block.start,
            cols if block.pitch is None else block.pitch,
            is_coded or gathers or block.is_fine or not block.runs_on,
            gathers,
            _PARAM_KINDS[block.param.dtype],
            _PARAM_KINDS[block.grad.dtype],
            _MOMENTUM_KINDS[None if buffer is None else buffer.dtype],
            ctypes.c_float.from_address(block.scale.data_ptr()),
        )

    def _layout(self, tensor: Tensor | None, cols: int) -> _Layout:
        """Return the layout of a tensor; the table keeps the maps alive."""
        if tensor is None or tensor.is_contiguous():
            return _Layout(cols, None)
        stride, *strides = tensor.stride()
        key = (tensor.shape[1:], *strides)
        if key not in self._maps:
            places = torch.zeros((), dtype=torch.int64, device="cpu")
            for size, step in zip(key[0], strides, strict=True):
                steps = torch.arange(size, device="cpu") * step
                places = places[..., None] + steps
            self._maps[key] = array.array("q", places.flatten().tolist())
        return _Layout(stride, self._maps[key])


def unavailable(param: Tensor) -> str:
    """Return why this execution cannot update a parameter, "" if it can.

    Args:
        param: the parameter.

    Returns:
        A sentence, or "".
    """
    if not param.is_cpu:
        return f"a parameter is on {param.device}"
    if param.dtype not in _PARAM_KINDS:
        return f"a parameter is {param.dtype}"
    loaded = library.load()
    return loaded if isinstance(loaded, str) else ""


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to all blocks in one call.

    Blocks that the kernel does not know go through :mod:`saiopt.update.reference`, and
    so does everything under torch.compile, which cannot follow a call by address.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.

    Raises:
        RuntimeError: there is no kernel.
    """
    if coefficients.direction is not None:
        along.update(blocks, coefficients, coefficients.direction, look_ahead, update)
        return
    if torch.compiler.is_compiling():
        reference.update(blocks, coefficients)
        return
    known, others = [], []
    for block in blocks:
        (known if knows(block) else others).append(block)
    reference.update(others, coefficients)
    if not known:
        return
    grads = [b.grad.data_ptr() for b in known]
    Table(known)._call(grads, coefficients, 0)
    # What autograd saved of the parameters is no longer what they are.
    written = [t for b in known for t in (b.param, b.momentum_buffer) if t is not None]
    torch.autograd.graph.increment_version(written)


# A table costs next to nothing here.
finish = update


def look_ahead(
    blocks: Sequence[Block], targets: Sequence[Tensor], coefficients: Coefficients
) -> None:
    """Advance all momenta in one call, and write what they will be if g stays.

    16 bytes per float32 entry. Blocks that the kernel does not know, float64 ones, and
    everything under torch.compile go through :func:`saiopt.update.along.look_ahead`.

    Args:
        blocks: the tensors; only momentum buffers change.
        targets: as there.
        coefficients: the numbers that the blocks share.

    Raises:
        RuntimeError: there is no kernel.
    """
    if torch.compiler.is_compiling():
        along.look_ahead(blocks, targets, coefficients)
        return
    known, others = [], []
    for block, target in zip(blocks, targets, strict=True):
        if knows(block) and block.param.dtype != torch.float64:
            known.append(block._replace(param=target))
        else:
            others.append((block, target))
    along.look_ahead([b for b, _ in others], [t for _, t in others], coefficients)
    if not known:
        return
    grads = [b.grad.data_ptr() for b in known]
    Table(known)._call(grads, coefficients, 0, looks_ahead=True)
    momenta = [b.momentum_buffer for b in known if b.momentum_buffer is not None]
    torch.autograd.graph.increment_version(momenta)


def knows(block: Block) -> bool:
    """Tell whether the kernel can update a block.

    Args:
        block: the tensors.

    Returns:
        False where dtypes are mixed in a way that it has no code for, for codes that a
        study put in place, and for tensors that are not plain ones in memory.
    """
    param, buffer = block.param, block.momentum_buffer
    if block.grad.dtype != param.dtype:
        return False
    dtype = None if buffer is None else buffer.dtype
    if (param.dtype == torch.float64) != (dtype == torch.float64) and dtype:
        return False
    if param.dtype not in _PARAM_KINDS or dtype not in _MOMENTUM_KINDS:
        return False
    if dtype in SHIPPED and code_of(dtype) != SHIPPED[dtype]:
        return False
    held = (block.momentum_scale, block.row_scale, block.column_scale)
    codes = (buffer if block.momentum_scale is not None else None, *held)
    return all(t is None or t.is_contiguous() for t in codes) and all(
        _is_plain(t) for t in block if isinstance(t, Tensor)
    )


def _loaded() -> ctypes.CDLL:
    kernel = library.load()
    if isinstance(kernel, str):
        raise RuntimeError(f"the fused execution is not available: {kernel}")
    address, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    rule = ctypes.POINTER(_Rule)
    kernel.saiopt_holds.argtypes = (address, count)
    kernel.saiopt_update.argtypes = (address, address, count, rule, number, number)
    kernel.saiopt_update.restype = None
    return kernel


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor's entries lie in memory that the kernel can reach."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and not tensor.is_neg()
        and tensor.data_ptr() != 0
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _rule(coefficients: Coefficients, *, looks_ahead: bool) -> _Rule:
    lr = float(coefficients.lr)
    weight = 1 - coefficients.momentum
    # As torch.lerp, from the nearer end, so that the result lies between both.
    from_grad = weight >= 0.5
    return _Rule(
        weight - 1 if from_grad else weight,
        1 - lr * coefficients.weight_decay,
        coefficients.signed_multiplier * lr,
        from_grad,
        coefficients.momentum == 0,
        looks_ahead,
    )
