"""The update rule on GPUs in one pass: 20 bytes per float32 entry, a few launches.

Blocks of one kind are updated by one launch: a table on the device holds their
addresses. Where only those of the gradients change, as after ``zero_grad()``, they
alone are written again. Addresses reach the device as kernel arguments, never by a copy
from host memory, and no step waits for the device.

Entries that do not lie in memory as they read are found by maps of a row's columns.
These are small and stay in the caches, where two divisions for each dimension of each
tensor would take longer than an entry's bytes. Momentum that is not coded is updated in
the order of memory if that is the same in all tensors; then a map says at most which
column an entry belongs to, as noise and finer scales must know.

A look-ahead, for directions of whole matrices, is a launch of its own for each kind:
it reads m and g, and writes m and μ m + (1-μ) g in float32, 16 bytes per float32 entry,
and with momentum in 8 and 4 bits 10.125 and 9.125. The direction's step is one without
momentum, 12. Where the stack between them lies is new at every step: the tables of both
are made anew, by small launches.

A step can be captured in a CUDA graph once all blocks are calibrated, which reads the
device: take one step before. A graph gets tables of its own, in its own memory, so that
later steps cannot disturb it. It repeats the `lr` it was captured with unless `lr` is a
tensor on the device.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

import torch
import triton.language as tl
from torch import Tensor

from saiopt.low_bit import SHIPPED, code_of

from . import along, foreach, reference
from .blocks import Block, Coefficients
from .triton_kernel import GROUP, Row, update_kernel

_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}
# Groups of a program: 4096 entries.
_GROUPS = 128
_GRAD, _FIRST_PROGRAM = map(Row._fields.index, ("grad", "first_program"))
# Eight warps with 16 entries for each thread.
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}

# How the entries of a block lie:
# run: one behind the other, and it does not matter in which row and column they are,
# rows: one behind the other, and it does,
# reordered: alike in all tensors, row by row, but in a row in another order,
# gathered: in each tensor in another way.
Layout: TypeAlias = Literal["run", "rows", "reordered", "gathered"]

# Sizes of dimensions and steps from one entry to the next in them, outermost first.
_Map: TypeAlias = tuple[tuple[int, int], ...]


class Kind(NamedTuple):
    """Hold what the blocks of a launch have in common.

    Args:
        device: where they are.
        dtype: of parameters, or of targets of a look-ahead.
        grad: dtype of gradients.
        momentum: dtype of the momentum or of its codes, None without momentum.
        stochastic: whether results round stochastically.
        layout: how entries lie.
        whole: whether rows consist of whole groups.
        aligned: whether addresses are multiples of 16.
    """

    device: torch.device
    dtype: torch.dtype
    grad: torch.dtype
    momentum: torch.dtype | None
    stochastic: bool
    layout: Layout
    whole: bool
    aligned: bool


class Table:
    """Hold the addresses of blocks, for one call after the other.

    It reads and writes memory by address: who holds it makes sure that the tensors are
    where they were.

    Args:
        blocks: those of :func:`knows`; None for what is never updated.
    """

    sees_writes = False

    def __init__(self, blocks: Sequence[Block | None]) -> None:
        kinds: dict[Kind, dict[int, Block]] = defaultdict(dict)
        for i, block in enumerate(blocks):
            if block is not None:
                kinds[_kind(block)][i] = block
        self._launches = [_Launch(kind, members) for kind, members in kinds.items()]

    def holds(self, first: int, count: int) -> bool:
        """Tell that nothing speaks against the scales: reading them would wait.

        Args:
            first: index of the first block.
            count: number of blocks.

        Returns:
            True.
        """
        del first, count
        return True

    def expect(self, rows: Iterable[int]) -> None:
        """Take the scales of some blocks as they are now: nothing was noted of them.

        Args:
            rows: indices of the blocks.
        """

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
        for launch in self._launches:
            launch.run(
                grads, coefficients, first, advances=advances, looks_ahead=looks_ahead
            )


class _Launch:
    """Own the blocks of one kind, and their tables on the device.

    Each stream has a table of its own: another one might still be reading it. Of the
    tensors only the 0-d seeds are kept alive.

    Args:
        kind: of the blocks.
        blocks: by their places among all.
    """

    def __init__(self, kind: Kind, blocks: Mapping[int, Block]) -> None:
        self._kind = kind
        self._places = list(blocks)
        self._seeds = [b.rounding_seed for b in blocks.values()]
        self._rows = [_row(b, kind.layout) for b in blocks.values()]
        self._maps = [_maps(b, kind.layout) for b in blocks.values()]
        programs = (-(-row.num_groups // _GROUPS) for row in self._rows)
        self._firsts = list(accumulate(programs, initial=0))
        self._tables: dict[int, _DeviceTable] = {}

    def run(
        self,
        grads: Sequence[int],
        coefficients: Coefficients,
        first: int,
        *,
        advances: bool,
        looks_ahead: bool,
    ) -> None:
        """Update those of some consecutive blocks that are here and have a gradient.

        Args:
            grads: addresses of the gradients of all of them, 0 for none.
            coefficients: the numbers that the blocks share.
            first: the place of the first.
            advances: whether they get new noise.
            looks_ahead: whether to write what momenta will be, in place of parameters.
        """
        start = bisect_left(self._places, first)
        stop = bisect_left(self._places, first + len(grads))
        own = [grads[place - first] for place in self._places[start:stop]]
        if not any(own):
            return
        kind, program = self._kind, self._firsts[start]
        if any(address % 16 for address in own):
            kind = kind._replace(aligned=False)
        with _current(kind.device):
            table = self._table()
            table.point_to(own, start)
            update_kernel[(self._firsts[stop] - program,)](
                table.values,
                table.owners,
                program,
                **arguments(kind, coefficients, looks_ahead=looks_ahead),
                **LAUNCH,
            )
            if advances:
                self._advance(own, start)

    def _advance(self, grads: Sequence[int], start: int) -> None:
        seeds = zip(self._seeds[start : start + len(grads)], grads, strict=True)
        stepped = [seed for seed, grad in seeds if grad and seed is not None]
        if stepped:
            torch._foreach_add_(stepped, 1)

    def _table(self) -> _DeviceTable:
        if self._kind.device.type != "cuda":
            stream = 0
        elif torch.cuda.is_current_stream_capturing():
            return self._make_table()
        else:
            stream = torch.cuda.current_stream().stream_id
        if stream not in self._tables:
            self._tables[stream] = self._make_table()
        return self._tables[stream]

    def _make_table(self) -> _DeviceTable:
        return _DeviceTable(self._kind.device, self._rows, self._maps, self._firsts)


class _DeviceTable:
    """Keep the addresses of some blocks on the device, for launches of one stream.

    Args:
        device: of the blocks.
        rows: the table's rows; what is not known of them yet is 0.
        maps: of each block, by field.
        firsts: first program of each block, and the number of all programs.
    """

    def __init__(
        self,
        device: torch.device,
        rows: Sequence[Row],
        maps: Sequence[Mapping[str, _Map]],
        firsts: Sequence[int],
    ) -> None:
        # What is made under inference mode could not be written outside of it.
        with torch.inference_mode(False):
            keys = dict.fromkeys(key for of in maps for key in of.values())
            self._maps = {key: _make_map(key, device) for key in keys}
            complete = [
                row._replace(
                    first_program=first,
                    **{field: self._maps[key].data_ptr() for field, key in of.items()},
                )
                for row, of, first in zip(rows, maps, firsts[:-1], strict=True)
            ]
            self.values = torch.zeros(
                len(rows), len(Row._fields), dtype=torch.int64, device=device
            )
            for field, numbers in enumerate(zip(*complete, strict=True)):
                if any(numbers):
                    _add(self.values[:, field].unbind(), numbers)
            self._grad_column = self.values[:, _GRAD]
            self._grad_slots = self._grad_column.unbind()
            programs = torch.arange(firsts[-1], device=device)
            starts = self.values[:, _FIRST_PROGRAM].contiguous()
            owners = torch.searchsorted(starts, programs, right=True) - 1
            self.owners = owners.to(torch.int32)
        self._grads: list[int | None] = [0] * len(rows)

    def point_to(self, grads: list[int], first: int) -> None:
        """Write the addresses of gradients, unless they are there already.

        Args:
            grads: the addresses.
            first: row of the first.
        """
        at = slice(first, first + len(grads))
        if self._grads[at] == grads:
            return
        # If this is interrupted, nobody knows what stands there.
        self._grads[at] = [None] * len(grads)
        if len(grads) == 1:
            self._grad_slots[first].fill_(grads[0])
        else:
            self._grad_column[at].zero_()
            _add(self._grad_slots[at], grads)
        self._grads[at] = grads


def unavailable(param: Tensor) -> str:
    """Return why this execution cannot update a parameter, "" if it can.

    Args:
        param: the parameter.

    Returns:
        A sentence, or "".
    """
    if not param.is_cuda:
        return f"a parameter is on {param.device}"
    if param.dtype not in _DTYPES:
        return f"a parameter is {param.dtype}"
    return ""


def update(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule to all blocks, with one launch for each kind of them.

    Blocks that the kernel does not know go through :mod:`saiopt.update.reference`.
    Everything under torch.compile goes through :mod:`saiopt.update.foreach`, since
    tracing cannot follow addresses.

    Args:
        blocks: the tensors; parameters and momentum buffers change in place.
        coefficients: the numbers that the blocks share.
    """
    if coefficients.direction is not None:
        along.update(blocks, coefficients, coefficients.direction, look_ahead, finish)
    else:
        _update(blocks, coefficients, Table)


def finish(blocks: Sequence[Block], coefficients: Coefficients) -> None:
    """Apply the rule along directions to blocks that lie in the same place every step.

    Args:
        blocks: the tensors, without momentum; parameters change in place.
        coefficients: the numbers that the blocks share.
    """
    _update(blocks, coefficients, _table_of)


def _update(
    blocks: Sequence[Block],
    coefficients: Coefficients,
    table_of: Callable[[Sequence[Block]], Table],
) -> None:
    if torch.compiler.is_compiling():
        foreach.update(blocks, coefficients)
        return
    known, others = [], []
    for block in blocks:
        (known if knows(block) else others).append(block)
    reference.update(others, coefficients)
    grads = [b.grad.data_ptr() for b in known]
    table_of(known)._call(grads, coefficients, 0)
    # What autograd saved of the parameters is no longer what they are.
    written = [t for b in known for t in (b.param, b.momentum_buffer) if t is not None]
    torch.autograd.graph.increment_version(written)


def look_ahead(
    blocks: Sequence[Block], targets: Sequence[Tensor], coefficients: Coefficients
) -> None:
    """Advance all momenta, and write what they will be if g stays.

    One launch for each kind of blocks, 16 bytes per float32 entry. Blocks that the
    kernel does not know, and everything under torch.compile, go through
    :func:`saiopt.update.along.look_ahead`.

    Args:
        blocks: the tensors; only momentum buffers change.
        targets: as there.
        coefficients: the numbers that the blocks share.
    """
    if torch.compiler.is_compiling():
        along.look_ahead(blocks, targets, coefficients)
        return
    known, others = [], []
    for block, target in zip(blocks, targets, strict=True):
        seen = block._replace(param=target, row_scale=None, column_scale=None)
        if knows(block) and _reaches(seen):
            known.append(seen)
        else:
            others.append((block, target))
    along.look_ahead([b for b, _ in others], [t for _, t in others], coefficients)
    grads = [b.grad.data_ptr() for b in known]
    _table_of(known)._call(grads, coefficients, 0, looks_ahead=True)
    momenta = [b.momentum_buffer for b in known if b.momentum_buffer is not None]
    torch.autograd.graph.increment_version(momenta)


def _table_of(blocks: Sequence[Block]) -> Table:
    """Return the table of blocks, an earlier one if they lie where others lay.

    The direction of a stack is stepped along in every step, and to make a table takes
    some ten launches.
    """
    key = tuple(map(_place, blocks))
    if key not in _tables:
        if len(_tables) == _MOST_TABLES:
            _tables.clear()
        _tables[key] = Table(blocks)
    return _tables[key]


_MOST_TABLES = 2**12
_tables: dict[tuple[object, ...], Table] = {}


def _place(block: Block) -> tuple[object, ...]:
    """Return all that a table knows of a block, which has no part of the gradient's."""
    held = (t for t in block if isinstance(t, Tensor) and t is not block.grad)
    where = ((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in held)
    names = tuple(isinstance(t, Tensor) for t in block)
    grad = (block.grad.dtype, block.grad.shape, block.grad.stride())
    return (*where, names, grad, block.param.device, block.start, block.pitch)


def knows(block: Block) -> bool:
    """Tell whether the kernel can update a block.

    Args:
        block: the tensors.

    Returns:
        False where dtypes are mixed in a way that it has no code for, for codes that a
        study put in place, for rows that reach beyond 2³¹ entries without lying one
        behind the other, and for tensors that are not plain ones in the memory of one
        device.
    """
    param, buffer = block.param, block.momentum_buffer
    if block.grad.dtype != param.dtype or not param.is_floating_point():
        return False
    held = [param] if buffer is None else [param, buffer]
    if any(t.dtype not in _DTYPES for t in held):
        return False
    if any(t.dtype in SHIPPED and code_of(t.dtype) != SHIPPED[t.dtype] for t in held):
        return False
    if not all(_is_plain(t, param.device) for t in block if isinstance(t, Tensor)):
        return False
    codes = None if block.momentum_scale is None else buffer
    vectors = (codes, block.momentum_scale, block.row_scale, block.column_scale)
    return all(t is None or t.is_contiguous() for t in vectors) and _reaches(block)


def arguments(
    kind: Kind, coefficients: Coefficients, *, looks_ahead: bool = False
) -> dict[str, object]:
    """Return the kernel's arguments except the table, the owners and the program.

    Args:
        kind: of the blocks.
        coefficients: the numbers that the blocks share.
        looks_ahead: whether the kernel looks ahead.

    Returns:
        Arguments by name.
    """
    lr = coefficients.lr
    on_device = isinstance(lr, Tensor) and lr.device == kind.device
    weight = 1 - coefficients.momentum
    return {
        "lr": lr if on_device else float(lr),
        "weight_decay": float(coefficients.weight_decay),
        # As torch.lerp, from the nearer end, so that the result lies between both.
        "weight": float(weight - 1 if weight >= 0.5 else weight),
        "multiplier": coefficients.signed_multiplier,
        "DTYPE": _DTYPES[kind.dtype],
        "GRAD_DTYPE": _DTYPES[kind.grad],
        "MOMENTUM": None if kind.momentum is None else _DTYPES[kind.momentum],
        "BITS": 0 if kind.momentum not in SHIPPED else SHIPPED[kind.momentum].bits,
        "STOCHASTIC": kind.stochastic,
        "LOOKS_AHEAD": looks_ahead,
        "LR_ON_DEVICE": on_device,
        "LAYOUT": kind.layout,
        "WHOLE": kind.whole,
        "ALIGNED": kind.aligned,
        "GROUPS": _GROUPS,
    }


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _add(slots: Sequence[Tensor], numbers: Sequence[int]) -> None:
    """Add numbers, not all 0, to entries that are 0, as kernel arguments."""
    pairs = [(s, n) for s, n in zip(slots, numbers, strict=True) if n != 0]
    torch._foreach_add_([s for s, _ in pairs], [n for _, n in pairs])


def _make_map(key: _Map, device: torch.device) -> Tensor:
    """Return where the columns of a row lie, int32."""
    places = torch.zeros((), dtype=torch.int32, device=device)
    for size, step in key:
        steps = torch.arange(size, dtype=torch.int32, device=device) * step
        places = places[..., None] + steps
    return places.flatten()


def _is_plain(tensor: Tensor, device: torch.device) -> bool:
    """Tell whether a tensor's entries lie in memory that the kernel can reach."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device == device
        and not tensor.is_neg()
        and tensor.data_ptr() != 0
    )


def _reaches(block: Block) -> bool:
    """Tell whether maps of 32 bits say where all columns of a row lie."""
    maps = _maps(block, _layout(block)).values()
    return all(sum((size - 1) * step for size, step in m) < 2**31 for m in maps)


def _kind(block: Block) -> Kind:
    param, buffer, layout = block.param, block.momentum_buffer, _layout(block)
    addressed = (param, block.grad, buffer, block.momentum_scale, block.column_scale)
    return Kind(
        param.device,
        param.dtype,
        block.grad.dtype,
        None if buffer is None else buffer.dtype,
        block.rounding_seed is not None,
        layout,
        _shape(block, layout)[1] % GROUP.value == 0,
        all(_address(t) % 16 == 0 for t in addressed),
    )


def _layout(block: Block) -> Layout:
    tensors = _tensors(block).values()
    keeps_indices = block.rounding_seed is None or block.runs_on
    if all(t.is_contiguous() for t in tensors):
        return "run" if keeps_indices and not block.is_fine else "rows"
    steps = _steps(block.param)
    lie_alike = all(_steps(t) == steps for t in tensors) and _is_dense(steps)
    if block.momentum_scale is not None or not lie_alike:
        return "gathered"
    if block.rounding_seed is None and not block.is_fine:
        return "run"
    rows, cols = block.shape
    return "reordered" if rows == 1 or block.param.stride(0) == cols else "gathered"


def _tensors(block: Block) -> dict[str, Tensor]:
    """Return the tensors that have the block's shape, by name."""
    tensors = {"param": block.param, "grad": block.grad}
    if block.momentum_buffer is not None and block.momentum_scale is None:
        tensors["momentum"] = block.momentum_buffer
    return tensors


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """Return strides and sizes of the dimensions that have steps."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [(stride, size) for stride, size in pairs if size > 1]


def _is_dense(steps: Sequence[tuple[int, int]]) -> bool:
    """Tell whether entries lie one behind the other, in whatever order."""
    reached = 1
    for stride, size in sorted(steps):
        if stride != reached:
            return False
        reached *= size
    return True


def _maps(block: Block, layout: Layout) -> dict[str, _Map]:
    """Return the maps that a layout needs, by the table's fields."""
    shape, strides = block.param.shape, block.param.stride()
    if layout == "reordered":
        dims = sorted(range(1, len(shape)), key=lambda d: -strides[d])
        order = tuple((shape[d], math.prod(shape[d + 1 :])) for d in dims)
        return {"column_map": order}
    if layout == "gathered":
        return {
            f"{name}_map": tuple(zip(t.shape[1:], t.stride()[1:], strict=True))
            for name, t in _tensors(block).items()
        }
    return {}


def _shape(block: Block, layout: Layout) -> tuple[int, int]:
    """Return rows and columns; all entries make one row where they can."""
    rows, cols = block.shape
    is_one_row = layout == "run" and block.momentum_scale is None
    return (1, rows * cols) if is_one_row else (rows, cols)


def _row(block: Block, layout: Layout) -> Row:
    """Return a row that lacks what changes, and what is on the device."""
    rows, cols = _shape(block, layout)
    gathers = layout == "gathered"
    strides = {
        f"{name}_stride": t.stride(0) if gathers else 0
        for name, t in _tensors(block).items()
    }
    nothing = Row(*[0] * len(Row._fields))
    return nothing._replace(
        param=block.param.data_ptr(),
        momentum=_address(block.momentum_buffer),
        momentum_scale=_address(block.momentum_scale),
        scale=block.scale.data_ptr(),
        seed=_address(block.rounding_seed),
        row_scale=_address(block.row_scale),
        column_scale=_address(block.column_scale),
        **strides,
        cols=cols,
        num_groups=rows * -(-cols // GROUP.value),
        start=block.start,
        pitch=block.shape[1] if block.pitch is None else block.pitch,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
