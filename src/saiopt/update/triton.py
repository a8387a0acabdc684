"""The update rule on GPUs in one pass: 20 bytes per float32 entry, a few launches.

Blocks that share their dtypes are updated by one launch: a table on the device holds
their addresses. It is kept while the addresses stay the same; where only those of the
gradients change, as after ``zero_grad()``, they alone are written again. Addresses
reach the device as kernel arguments, never by a copy from host memory, and no step
waits for the device.

A step can be captured in a CUDA graph once all blocks are calibrated, which reads the
device: take one step before. A graph gets tables of its own, in its own memory, so that
later steps cannot disturb it. It repeats the `lr` it was captured with unless `lr` is a
tensor on the device.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from saiopt.low_bit import SHIPPED, code_of

from . import reference
from .blocks import Block, Coefficients
from .tiles import matrix_shape
from .triton_kernel import NUM_COLUMNS, update_kernel

_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}
_GROUP = 32
# Groups of a program: 4096 entries.
_GROUPS = 128
_GRAD_COLUMN = 1
# Eight warps with 16 entries for each thread.
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


class Kind(NamedTuple):
    """Hold what the blocks of a launch have in common.

    Args:
        device: where they are.
        dtype: of parameters and gradients.
        momentum: dtype of the momentum or of its codes, None without momentum.
        stochastic: whether results round stochastically.
        whole: whether rows consist of whole groups.
        aligned: whether addresses are multiples of 16.
    """

    device: torch.device
    dtype: torch.dtype
    momentum: torch.dtype | None
    stochastic: bool
    whole: bool
    aligned: bool


class _Table:
    """Keep the addresses of some blocks on the device, those of gradients apart.

    Args:
        device: of the blocks.
        rows: the table's rows, with 0 for the gradients.
        num_programs: programs of each block.
    """

    def __init__(
        self, device: torch.device, rows: Sequence[Sequence[int]], programs: int
    ) -> None:
        self.programs = programs
        self.values = torch.zeros(
            len(rows), NUM_COLUMNS, dtype=torch.int64, device=device
        )
        _add(self.values.view(-1), [value for row in rows for value in row])
        starts = self.values[:, -1].contiguous()
        places = torch.arange(programs, device=device)
        owners = torch.searchsorted(starts, places, right=True) - 1
        self.owners = owners.to(torch.int32)
        self._grads: list[int] = []

    def point_to(self, grads: list[int]) -> None:
        """Write the addresses of the gradients, unless they are there already."""
        if grads != self._grads:
            column = self.values[:, _GRAD_COLUMN]
            column.zero_()
            _add(column, grads)
            self._grads = grads


def unavailable(params: Sequence[Tensor]) -> str:
    """Return why this execution cannot update such parameters, "" if it can.

    Args:
        params: the parameters.

    Returns:
        A sentence, or "".
    """
    for param in params:
        if param.device.type != "cuda":
            return f"a parameter is on {param.device}"
        if param.dtype not in _DTYPES:
            return f"a parameter is {param.dtype}"
    return ""


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to all blocks, with one launch for each kind of them.

    Blocks that the kernel does not know go through :mod:`saiopt.update.reference`:
    those with tensors that are not contiguous, with scales that vary within the block,
    with gradients of another dtype, and with codes that a study put in place.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
    """
    kinds: dict[Kind, list[Block]] = defaultdict(list)
    for block in blocks:
        if not _knows(block):
            reference.update([block], coefficients)
        elif block.param.numel() > 0:
            kinds[_kind(block)].append(block)
    for kind, members in kinds.items():
        _launch(kind, members, coefficients)
        written = [
            t for b in members for t in (b.param, b.momentum_buffer) if t is not None
        ]
        # What autograd saved of the parameters is no longer what they are.
        torch.autograd.graph.increment_version(written)


def arguments(kind: Kind, coefficients: Coefficients) -> dict[str, object]:
    """Return the kernel's arguments except the table and the owners.

    Args:
        kind: of the blocks.
        coefficients: the numbers that the blocks share.

    Returns:
        Arguments by name.
    """
    lr = coefficients.lr
    on_device = isinstance(lr, Tensor) and lr.device == kind.device
    weight = 1 - coefficients.momentum
    # As torch.lerp, from the nearer end, so that the result lies between both.
    from_grad = weight >= 0.5
    return {
        "lr": lr if on_device else float(lr),
        "weight_decay": float(coefficients.weight_decay),
        "weight": float(weight - 1 if from_grad else weight),
        "sign": float(coefficients.sign),
        "DTYPE": _DTYPES[kind.dtype],
        "MOMENTUM": None if kind.momentum is None else _DTYPES[kind.momentum],
        "BITS": 0 if kind.momentum not in SHIPPED else SHIPPED[kind.momentum].bits,
        "STOCHASTIC": kind.stochastic,
        "FROM_GRAD": from_grad,
        "FORGETS": coefficients.momentum == 0,
        "LR_ON_DEVICE": on_device,
        "WHOLE": kind.whole,
        "ALIGNED": kind.aligned,
        "GROUPS": _GROUPS,
    }


def _launch(kind: Kind, blocks: list[Block], coefficients: Coefficients) -> None:
    rows = tuple(map(_row, blocks))
    on_cuda = kind.device.type == "cuda"
    with torch.cuda.device(kind.device) if on_cuda else nullcontext():
        if on_cuda and torch.cuda.is_current_stream_capturing():
            table = _make_table(kind.device, rows)
        else:
            stream = torch.cuda.current_stream().stream_id if on_cuda else 0
            table = _kept_table(kind.device, rows, stream)
        table.point_to([b.grad.data_ptr() for b in blocks])
        update_kernel[(table.programs,)](
            table.values,
            table.owners,
            **arguments(kind, coefficients),
            **LAUNCH,
        )


def _make_table(device: torch.device, rows: Sequence[tuple[int, ...]]) -> _Table:
    """Return a table of rows that lack the column of their first programs."""
    complete, programs = [], 0
    for row in rows:
        complete.append((*row, programs))
        programs += -(-row[-1] // _GROUPS)
    return _Table(device, complete, programs)


@functools.lru_cache(maxsize=4096)
def _kept_table(
    device: torch.device, rows: tuple[tuple[int, ...], ...], stream: int
) -> _Table:
    """Return the table of these rows; another stream might still read its own."""
    del stream
    return _make_table(device, rows)


def _add(slots: Tensor, values: Sequence[int]) -> None:
    """Add numbers to the entries of a tensor, handed over as kernel arguments."""
    torch._foreach_add_(list(slots.unbind()), list(values))


def _knows(block: Block) -> bool:
    param, buffer = block.param, block.momentum_buffer
    if block.grad.dtype != param.dtype or block.scale.dim() > 0:
        return False
    if not param.is_floating_point() or param.dtype not in _DTYPES:
        return False
    if buffer is not None:
        if buffer.dtype not in _DTYPES:
            return False
        if buffer.dtype in SHIPPED and code_of(buffer.dtype) != SHIPPED[buffer.dtype]:
            return False
    return all(_is_plain(t, param.device) for t in block if t is not None)


def _is_plain(tensor: Tensor, device: torch.device) -> bool:
    """Tell whether a tensor's entries lie in the device's memory as they read."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device == device
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _kind(block: Block) -> Kind:
    param, buffer = block.param, block.momentum_buffer
    addressed = [param, block.grad, buffer, block.momentum_scale]
    return Kind(
        param.device,
        param.dtype,
        None if buffer is None else buffer.dtype,
        block.rounding_seed is not None,
        _cols(block) % _GROUP == 0,
        all(t is None or t.data_ptr() % 16 == 0 for t in addressed),
    )


def _cols(block: Block) -> int:
    """Return the length of a row; without codes all entries make one."""
    if block.momentum_scale is None:
        return block.param.numel()
    return matrix_shape(block.param)[1]


def _row(block: Block) -> tuple[int, ...]:
    cols = _cols(block)
    addressed = (
        block.momentum_buffer,
        block.momentum_scale,
        block.scale,
        block.rounding_seed,
    )
    return (
        block.param.data_ptr(),
        0,
        *(0 if t is None else t.data_ptr() for t in addressed),
        cols,
        block.param.numel() // cols * -(-cols // _GROUP),
    )
