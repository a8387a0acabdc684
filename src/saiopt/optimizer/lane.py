"""Blocks that one call of an execution can update, and what a step does to them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import compress
from operator import attrgetter, is_, is_not
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from saiopt.distributed.shards import (
    is_sharded,
    local_entries,
    local_grad,
    place_of,
)
from saiopt.scaling import rule_of
from saiopt.update import Block, Coefficients, Execution, Table, advance, decay

from . import state
from .calibration import Candidate, Finding
from .sharing import Part

# Stages of a block: it waits for a gradient to begin with, it measures while its
# momentum runs, or its scales are fixed.
WAITING, MEASURING, RUNNING = range(3)

_DTYPE, _VERSION = attrgetter("dtype"), attrgetter("_version")
_IS_CPU = attrgetter("is_cpu")
_GRAD, _NBYTES = attrgetter("grad"), attrgetter("nbytes")


class Now(NamedTuple):
    """Hold the tensors of a lane's blocks for one step.

    Args:
        rows: which of the lane's blocks they belong to.
        params: the parameters.
        here: what lives here of them.
        entries: their states.
        held: what lives here of those, by key.
        grads: what lives here of the gradients, None where there is none.
    """

    rows: range
    params: Sequence[Tensor]
    here: Sequence[Tensor]
    entries: Sequence[dict[str, Tensor]]
    held: Mapping[str, Sequence[Tensor]]
    grads: Sequence[Tensor | None]


class Call(NamedTuple):
    """Hold one call of an execution.

    Args:
        update: what to call.
        blocks: the tensors.
        coefficients: the numbers that they share.
    """

    update: Callable[[Sequence[Block], Coefficients], None]
    blocks: Sequence[Block]
    coefficients: Coefficients

    def run(self) -> None:
        """Make the call, and give the blocks new noise."""
        self.update(self.blocks, self.coefficients)
        advance(self.blocks)


class Gradients:
    """Know what lives here of the gradients of one step.

    One that is distributed otherwise than its parameter takes a collective to bring
    into place, which every rank must run once, however often it looks.
    """

    def __init__(self) -> None:
        self._found: dict[int, Tensor | None] = {}

    def of(self, param: Tensor) -> Tensor | None:
        """Return what lives here of a parameter's gradient, None without one."""
        if id(param) not in self._found:
            self._found[id(param)] = local_grad(param)
        return self._found[id(param)]


class Lane:
    """Own blocks of a param group that have states of one kind and one execution.

    It knows the stage of each, and where all their tensors are. It keeps none of those
    alive but 0-d ones, so that momentum which is taken away is freed.

    Args:
        group: the param group.
        keys: of the blocks' states.
        execution: of all; None for blocks that none can update.
        params: the parameters.
        entries: their complete states.
        stages: of each, with the scale it was given beforehand, 0 for none.
        grads: of the present step.
        is_shared: whether other ranks take part in the blocks' directions.
    """

    def __init__(
        self,
        group: dict[str, Any],
        keys: Sequence[str],
        execution: Execution | None,
        params: Sequence[Tensor],
        entries: Sequence[dict[str, Tensor]],
        stages: Sequence[tuple[int, float]],
        grads: Gradients,
        *,
        is_shared: bool,
    ) -> None:
        self.group, self._is_shared = group, is_shared
        self._keys, self._execution = keys, execution
        self._direction = rule_of(group["scaling"]).direction
        self._stages = [stage for stage, _ in stages]
        self._presets = [preset for _, preset in stages]
        self._waited = [False] * len(params)
        self._settle()
        here = list(map(local_entries, params))
        self._is_distributed = any(map(is_not, here, params))
        self._places = list(map(place_of, params))
        held = {key: self._state(entries, key) for key in keys}
        rows = range(len(params))
        now = Now(rows, params, here, entries, held, self._grads(params, grads))
        self._note(now)
        self._bind(now)
        self._watch()

    def _note(self, now: Now) -> None:
        """Note what :meth:`gather` compares with."""
        self._is_concrete = all(map(state.is_concrete, now.here))
        self._is_on_cpu = self._is_concrete and all(map(_IS_CPU, now.here))
        self._scalars = [(k, t) for k, t in now.held.items() if k in state.SCALARS]
        self._arrays = [
            (key, list(map(_NBYTES, tensors)))
            for key, tensors in now.held.items()
            if key not in state.SCALARS and self._is_concrete
        ]
        self._params_as = _Forms(now.here)
        tensors = (now.here, *now.held.values())
        has_addresses = all(map(state.is_in_memory, now.here))
        self._addresses = list(map(_addresses, tensors)) if has_addresses else []
        # A gradient that there is not yet will probably lie as its parameter does.
        pairs = list(zip(now.here, now.grads, strict=True))
        self._grads_as = _Forms([p.detach() if g is None else g for p, g in pairs])
        # What cannot step as it is: its next gradient has all bound anew.
        self._unready = {
            i
            for i, (_, grad) in enumerate(pairs)
            if grad is None and (self._execution is None or self._lacks_memory(now, i))
        }

    def _lacks_memory(self, now: Now, row: int) -> bool:
        tensors = (now.here[row], *(now.entries[row][key] for key in self._keys))
        return any(map(state.lacks_memory, tensors))

    def _bind(self, now: Now) -> None:
        """Let the kernel note the addresses of the blocks that it knows."""
        self._table: Table | None = None
        self._others = set(now.rows)
        kernel = None if self._execution is None else self._execution.kernel
        if kernel is None or self._direction is not None:
            return
        blocks = [None if i in self._unready else self._block(now, i) for i in now.rows]
        known = [b if b is not None and kernel.knows(b) else None for b in blocks]
        self._others = {i for i, b in enumerate(known) if b is None}
        self._table = kernel.bind(known)

    def _watch(self) -> None:
        """Note what the stages were read from, unless the kernel does."""
        table = None if self._others else self._table
        self._watcher = table if table is not None and table.sees_writes else None
        keys = ("num_measured",) if self._watcher else ("scale", "num_measured")
        self._watched = [(k, tensors) for k, tensors in self._scalars if k in keys]
        self._marks = [self._read(tensors) for _, tensors in self._watched]

    def _read(self, tensors: Sequence[Tensor]) -> list[int | None]:
        """Return what shows that somebody wrote: bits where nothing is waited for.

        Writes through `.data` and those of collectives change no version.
        """
        if self._is_on_cpu:
            return list(map(_bits, tensors))
        return list(map(_VERSION, tensors))

    @property
    def is_unsettled(self) -> bool:
        """Whether a block has not begun, or measures still."""
        return bool(self._unsettled)

    def gather(
        self,
        params: Sequence[Tensor],
        entries: Sequence[dict[str, Tensor]],
        rows: range,
        grads: Gradients,
    ) -> Now | None:
        """Collect the tensors of a step, if all are where and what they were.

        Args:
            params: parameters of the lane.
            entries: their states.
            rows: which they are, consecutive ones.
            grads: of the present step.

        Returns:
            The tensors, or None where something has been replaced, moved or written.
        """
        at = slice(rows.start, rows.stop)
        held = {key: self._state(entries, key) for key in self._keys}
        here = list(map(local_entries, params)) if self._is_distributed else params
        here_grads = self._grads(params, grads)
        is_there = (
            all(all(map(is_, held[key], t[at])) for key, t in self._scalars)
            and all(list(map(_NBYTES, held[key])) == b[at] for key, b in self._arrays)
            and self._params_as.fit(here, rows)
            and self._is_unmoved(here, held, at)
            and self._is_unwritten(at)
            and self._are_as_expected(here_grads, rows)
        )
        now = Now(rows, params, here, entries, held, here_grads)
        return now if is_there and self._still_wait(now) else None

    def _is_unmoved(
        self, here: Sequence[Tensor], held: Mapping[str, Sequence[Tensor]], at: slice
    ) -> bool:
        """Tell whether all tensors are where they were, if they are anywhere."""
        if not self._addresses:
            return True
        pairs = zip((here, *held.values()), self._addresses, strict=True)
        return all(_addresses(tensors) == noted[at] for tensors, noted in pairs)

    def _is_unwritten(self, at: slice) -> bool:
        """Tell whether what the stages rest on is as it was read."""
        watcher = self._watcher
        if watcher is not None and not watcher.holds(at.start, at.stop - at.start):
            return False
        pairs = zip(self._watched, self._marks, strict=True)
        return all(self._read(t[at]) == noted[at] for (_, t), noted in pairs)

    def _still_wait(self, now: Now) -> bool:
        """Tell whether blocks that may begin do wait, by their scales.

        On accelerators a broadcast of state goes unnoticed else, and calibration waits
        for the device anyway.
        """
        if self._is_on_cpu:
            return True
        waiting = [i for i in self._asked(now) if self._stages[i] == WAITING]
        if not waiting:
            return True
        scales = [now.held["scale"][i - now.rows.start] for i in waiting]
        pairs = zip(waiting, torch.stack(scales).tolist(), strict=True)
        return all(preset_of(scale) == self._presets[i] for i, scale in pairs)

    def _are_as_expected(self, grads: list[Tensor | None], rows: range) -> bool:
        """Tell whether gradients are what the kernel was bound for, as it reads them.

        Those that are but marked as negated or zero are replaced by what they read as.
        """
        there: Sequence[int] = rows
        held = [g for g in grads if g is not None]
        if len(held) < len(grads):
            there = [i for i, g in zip(rows, grads, strict=True) if g is not None]
        if not self._unready.isdisjoint(there):
            return False
        is_there = not self._is_concrete or 0 not in _addresses(held)
        if is_there and self._grads_as.fit(held, there):
            return True
        grads[:] = [g if g is None else _plain(g) for g in grads]
        held = [g for g in grads if g is not None]
        # One whose memory was freed is what a new binding refuses.
        return self._grads_as.fit(held, there) and not any(
            map(state.lacks_memory, held)
        )

    def candidates(self, now: Now) -> Iterator[tuple[int, Candidate]]:
        """Find the blocks that may begin or measure at this step.

        Args:
            now: the tensors of the step.

        Yields:
            Their rows, and what calibration must know of them.
        """
        for row in self._asked(now):
            at = row - now.rows.start
            yield (
                row,
                Candidate(
                    now.params[at],
                    now.grads[at],
                    self.group,
                    now.entries[at],
                    self._presets[row],
                    self._stages[row] == MEASURING,
                    self._waited[row],
                ),
            )

    def _asked(self, now: Now) -> Iterator[int]:
        """Yield the unsettled rows with a gradient, on this rank or another one."""
        for row in self._unsettled:
            if row in now.rows:
                at = row - now.rows.start
                if now.grads[at] is not None or is_sharded(now.params[at]):
                    yield row

    def run(self, now: Now, findings: Mapping[int, Finding | None]) -> None:
        """Update the blocks of a step, then write down what has become of them.

        Those whose directions ranks share only decay here, while they wait.

        Args:
            now: their tensors.
            findings: by row, what was found of each candidate.
        """
        usual = self._coefficients()
        special = self._special(findings)
        # First what can fail for want of memory.
        if special:
            for call in self._special_calls(now, findings, usual):
                call.run()
            self._commit(now, findings)
        if not self._is_shared:
            for call in self._calls(now, self._others - special, usual):
                call.run()
        if self._table is not None:
            self._run_table(self._table, now, self._others | special, usual)

    def parts(self, now: Now, findings: Mapping[int, Finding | None]) -> Iterator[Part]:
        """Find the blocks whose directions ranks share, and which begin or run.

        Args:
            now: the tensors of the step.
            findings: by row, what was found of each candidate.

        Yields:
            What a step does to each.
        """
        direction = self._direction
        if not self._is_shared or self._execution is None or direction is None:
            return
        usual, first = self._coefficients(), self._coefficients(starting=True)
        bucket_bytes = int(self.group["bucket_cap_mb"] * 2**20)
        renewed = self._with_new_values(now, findings)
        waiting = self._special({})
        for row in now.rows:
            finding = findings.get(row)
            if finding is None and row in waiting:
                continue
            starts = finding is not None and finding.starts
            at = row - now.rows.start
            yield Part(
                now.params[at],
                self._block(renewed, row),
                self._execution,
                first if starts else usual,
                direction,
                bucket_bytes,
                starts,
                now.grads[at] is not None,
            )

    def ordinary_calls(self, now: Now) -> list[Call]:
        """Return the calls of a step in which nothing begins or measures.

        Args:
            now: the tensors of the step.

        Returns:
            Calls for a compiler to trace.
        """
        rows = set() if self._is_shared else set(now.rows) - self._special({})
        return self._calls(now, rows, self._coefficients())

    def _special(self, findings: Mapping[int, Finding | None]) -> set[int]:
        """Return the rows that a step does something else to than to all."""
        found = {row for row, finding in findings.items() if finding is not None}
        return found | {i for i in self._unsettled if self._stages[i] == WAITING}

    @staticmethod
    def _run_table(
        table: Table, now: Now, left_out: set[int], usual: Coefficients
    ) -> None:
        momenta = now.held.get("momentum_buffer", ())
        there = [g for g in now.grads if g is not None]
        if left_out or len(there) < len(now.grads):
            pairs = zip(now.rows, now.grads, strict=True)
            steps = [g is not None and row not in left_out for row, g in pairs]
            pairs = zip(steps, now.grads, strict=True)
            addresses = [g.data_ptr() if g is not None and s else 0 for s, g in pairs]
            written = [*compress(now.here, steps), *compress(momenta, steps)]
        else:
            addresses = _addresses(there)
            written = [*now.here, *momenta]
        if written:
            table.run(addresses, usual, now.rows.start)
            # What autograd saved of the parameters is no longer what they are.
            increment_version(written)

    def _calls(
        self, now: Now, rows: Collection[int], coefficients: Coefficients
    ) -> list[Call]:
        """Return the call that updates some rows, those without gradients left out."""
        blocks = [
            self._block(now, i)
            for i in sorted(rows)
            if i in now.rows and now.grads[i - now.rows.start] is not None
        ]
        if not blocks or self._execution is None:
            return []
        return [Call(self._execution.update, blocks, coefficients)]

    def _special_calls(
        self,
        now: Now,
        findings: Mapping[int, Finding | None],
        usual: Coefficients,
    ) -> Iterator[Call]:
        """Yield the calls for blocks that begin, measure or wait."""
        for starts in () if self._is_shared else (True, False):
            rows = [r for r, f in findings.items() if f and f.starts == starts]
            calls = self._calls(
                self._with_new_values(now, findings),
                rows,
                self._coefficients(starting=starts),
            )
            yield from calls
        waiting = self._special({}) - {r for r, f in findings.items() if f}
        # A dummy step, of rate 0, leaves even the noise as it was.
        if usual.weight_decay != 0 and not _is_zero(usual.lr):
            for call in self._calls(now, waiting, usual):
                yield call._replace(update=decay)

    @staticmethod
    def _with_new_values(now: Now, findings: Mapping[int, Finding | None]) -> Now:
        """Return the step with the scales that were found, not stored yet."""
        entries = list(now.entries)
        for row, finding in findings.items():
            if finding is not None and row in now.rows:
                at = row - now.rows.start
                entries[at] = {**entries[at], **finding.values}
        return now._replace(entries=entries)

    def _commit(self, now: Now, findings: Mapping[int, Finding | None]) -> None:
        """Write the values and stages that were found."""
        for row, finding in findings.items():
            if finding is None:
                self._waited[row] = True
                continue
            entry = now.entries[row - now.rows.start]
            for key, value in finding.values.items():
                local_entries(entry[key]).copy_(value)
            self._stages[row] = RUNNING if finding.is_fixed else MEASURING
            self._presets[row] = 0.0
            for (key, _), marks in zip(self._watched, self._marks, strict=True):
                marks[row] = self._read([local_entries(entry[key])])[0]
        if self._table is not None:
            self._table.expect(findings)
        self._settle()

    def _coefficients(self, *, starting: bool = False) -> Coefficients:
        return Coefficients.of(self.group, self._direction, starting=starting)

    def _settle(self) -> None:
        self._unsettled = [i for i, s in enumerate(self._stages) if s != RUNNING]

    def _block(self, now: Now, row: int) -> Block:
        at = row - now.rows.start
        entry, place = now.entries[at], self._places[row]
        grad = now.grads[at]
        keys = _BLOCK_KEYS & entry.keys()
        if self.group["stochastic_rounding"] is False:
            keys -= {"rounding_seed"}
        held = {key: local_entries(entry[key]) for key in keys}
        return Block(
            now.here[at],
            now.here[at] if grad is None else grad,
            held.get("momentum_buffer"),
            held["scale"],
            held.get("rounding_seed"),
            held.get("momentum_scale"),
            held.get("row_scale"),
            held.get("column_scale"),
            place.start,
            place.pitch,
        )

    def _state(self, entries: Sequence[Mapping[str, Tensor]], key: str) -> list[Tensor]:
        tensors = [entry[key] for entry in entries]
        return list(map(local_entries, tensors)) if self._is_distributed else tensors

    def _grads(self, params: Sequence[Tensor], grads: Gradients) -> list[Tensor | None]:
        return list(map(grads.of if self._is_distributed else _GRAD, params))


def preset_of(scale: float) -> float | None:
    """Return what a block that waits was given beforehand.

    Args:
        scale: as it is held.

    Returns:
        Its scale, 0 for none; None where it has begun.
    """
    if scale > 0:
        return None
    return -scale if scale < 0 else 0.0


# What of its state a block is updated with.
_BLOCK_KEYS = {
    "scale",
    "momentum_buffer",
    "momentum_scale",
    "rounding_seed",
    "row_scale",
    "column_scale",
}


class _Forms:
    """Know the kind, dtype, shape and strides of tensors.

    With the addresses they say which memory an execution may touch, and how.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._forms = list(map(_form, tensors))
        self._guard = _guard_of(tensors)

    def fit(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> bool:
        """Tell whether tensors are of the forms of some rows, and plain in memory."""
        is_whole = len(rows) == len(self._forms)
        if is_whole and self._guard is not None and self._guard.check(*tensors):
            return True
        return list(map(_form, tensors)) == [self._forms[i] for i in rows]


def _form(tensor: Tensor) -> tuple[object, ...]:
    return (
        type(tensor),
        tensor.dtype,
        tensor.size(),
        tensor.stride(),
        tensor.is_neg(),
    )


def _guard_of(tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401
    """Return torch.compile's own check of all tensors at once, None without one."""
    try:
        from torch._C._dynamo.guards import TensorGuards
    except ImportError:
        return None
    if not all(map(state.is_in_memory, tensors)):
        return None
    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


def _bits(scalar: Tensor) -> int | None:
    """Return the 32 bits of a 0-d tensor on a CPU, without an operator of torch."""
    address = scalar.data_ptr()
    return ctypes.c_int32.from_address(address).value if address else None


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _plain(grad: Tensor) -> Tensor:
    """Return a gradient that is marked as negated, or as zero, as it reads."""
    return torch.zeros_like(grad) if grad._is_zerotensor() else grad.resolve_neg()


def _is_zero(lr: float | Tensor) -> bool:
    # What a tensor holds only its device knows.
    return not isinstance(lr, Tensor) and lr == 0
