"""Blocks that one call of an execution can update, and what a step does to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import repeat
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

# Stages of a block: it waits for a gradient to begin with, it measures while its
# momentum runs, or its scales are fixed.
WAITING, MEASURING, RUNNING = range(3)
# What a stage is read from.
_STAGE_KEYS = ("scale", "num_measured")

_DTYPE, _VERSION = attrgetter("dtype"), attrgetter("_version")
_GRAD = attrgetter("grad")


class Now(NamedTuple):
    """Hold the tensors of a lane's blocks for one step.

    Args:
        rows: which of the lane's blocks they belong to.
        params: the parameters.
        here: what lives here of them.
        entries: their states.
        grads: what lives here of the gradients, None where there is none.
    """

    rows: range
    params: Sequence[Tensor]
    here: Sequence[Tensor]
    entries: Sequence[dict[str, Tensor]]
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
    """

    def __init__(
        self,
        group: dict[str, Any],
        keys: Sequence[str],
        execution: Execution | None,
        params: Sequence[Tensor],
        entries: Sequence[dict[str, Tensor]],
        stages: Sequence[tuple[int, float]],
    ) -> None:
        self.group = group
        self._keys, self._execution = keys, execution
        self._stages = [stage for stage, _ in stages]
        self._presets = [preset for _, preset in stages]
        self._waited = [False] * len(params)
        self._settle()
        here = list(map(local_entries, params))
        self._is_distributed = any(map(is_not, here, params))
        self._places = list(map(place_of, params))
        now = Now(range(len(params)), params, here, entries, self._grads(params))
        self._note(now)
        self._bind(now)

    def _note(self, now: Now) -> None:
        """Note what :meth:`gather` compares with."""
        self._watched = [
            (key, tensors, list(map(_VERSION, tensors)))
            for key in _STAGE_KEYS
            if key in self._keys
            for tensors in [[entry[key] for entry in now.entries]]
        ]
        self._params_as = _forms(now.here)
        self._states_as = [_forms(self._state(now.entries, k)) for k in self._keys]
        pairs = list(zip(now.here, now.grads, strict=True))
        # A gradient that there is not yet will probably lie as its parameter does.
        self._grads_as = _forms([p if g is None else g for p, g in pairs])
        self._grad_kinds = [Tensor if g is None else type(g) for _, g in pairs]
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
        self._others, self._addresses = set(now.rows), []
        kernel = None if self._execution is None else self._execution.kernel
        if kernel is None or rule_of(self.group["scaling"]).direction is not None:
            return
        blocks = [None if i in self._unready else self._block(now, i) for i in now.rows]
        known = [b if b is not None and kernel.knows(b) else None for b in blocks]
        self._others = {i for i, b in enumerate(known) if b is None}
        self._addresses = list(map(_addresses, self._addressed(now.here, now.entries)))
        self._table = kernel.bind(known)

    @property
    def is_unsettled(self) -> bool:
        """Whether a block has not begun, or measures still."""
        return bool(self._unsettled)

    def gather(
        self,
        params: Sequence[Tensor],
        entries: Sequence[dict[str, Tensor]],
        rows: range,
    ) -> Now | None:
        """Collect the tensors of a step, if all are where and what they were.

        Args:
            params: parameters of the lane.
            entries: their states.
            rows: which they are, consecutive ones.

        Returns:
            The tensors, or None where something has been replaced, moved or written.
        """
        at = slice(rows.start, rows.stop)
        for key, tensors, versions in self._watched:
            held = [entry[key] for entry in entries]
            if not all(map(is_, held, tensors[at])):
                return None
            if list(map(_VERSION, held)) != versions[at]:
                return None
        here = list(map(local_entries, params)) if self._is_distributed else params
        if not _are(here, self._params_as, at):
            return None
        for key, forms in zip(self._keys, self._states_as, strict=True):
            if not _are(self._state(entries, key), forms, at):
                return None
        if self._table is not None:
            pairs = zip(self._addressed(here, entries), self._addresses, strict=True)
            if not all(_addresses(tensors) == held[at] for tensors, held in pairs):
                return None
            if not self._table.holds(rows.start, len(rows)):
                return None
        grads = self._grads(params)
        if not self._are_as_expected(grads, at):
            return None
        return Now(rows, params, here, entries, _plain(grads))

    def _are_as_expected(self, grads: Sequence[Tensor | None], at: slice) -> bool:
        forms, kinds = self._grads_as, self._grad_kinds[at]
        if not all(map(is_not, grads, repeat(None))):
            there = [i for i, g in enumerate(grads, at.start) if g is not None]
            if not self._unready.isdisjoint(there):
                return False
            grads = [g for g in grads if g is not None]
            sizes, strides, dtypes, kinds = (
                [form[i] for i in there] for form in (*forms, self._grad_kinds)
            )
            forms, at = (sizes, strides, dtypes), slice(None)
        elif self._unready:
            return False
        return _are(grads, forms, at) and list(map(type, grads)) == kinds

    def candidates(self, now: Now) -> Iterator[tuple[int, Candidate]]:
        """Find the blocks that may begin or measure at this step.

        Args:
            now: the tensors of the step.

        Yields:
            Their rows, and what calibration must know of them.
        """
        for row in self._unsettled:
            if row not in now.rows:
                continue
            at = row - now.rows.start
            param = now.params[at]
            if now.grads[at] is not None or is_sharded(param):
                yield (
                    row,
                    Candidate(
                        param,
                        self.group,
                        now.entries[at],
                        self._presets[row],
                        self._stages[row] == MEASURING,
                        self._waited[row],
                    ),
                )

    def run(self, now: Now, findings: Mapping[int, Finding | None]) -> None:
        """Update the blocks of a step, then write down what has become of them.

        Args:
            now: their tensors.
            findings: by row, what was found of each candidate.
        """
        usual = Coefficients.of(self.group)
        special = self._special(findings)
        if self._table is not None:
            self._run_table(now, self._others | special, usual)
        for call in self._calls(now, self._others - special, usual):
            call.run()
        if special:
            for call in self._special_calls(now, findings, usual):
                call.run()
            self._commit(now, findings)

    def ordinary_calls(self, now: Now) -> list[Call]:
        """Return the calls of a step in which nothing begins or measures.

        Args:
            now: the tensors of the step.

        Returns:
            Calls for a compiler to trace.
        """
        rows = set(now.rows) - self._special({})
        return self._calls(now, rows, Coefficients.of(self.group))

    def _special(self, findings: Mapping[int, Finding | None]) -> set[int]:
        """Return the rows that a step does something else to than to all."""
        found = {row for row, finding in findings.items() if finding is not None}
        return found | {i for i in self._unsettled if self._stages[i] == WAITING}

    def _run_table(self, now: Now, left_out: set[int], usual: Coefficients) -> None:
        assert self._table is not None
        if left_out or not all(map(is_not, now.grads, repeat(None))):
            pairs = zip(now.rows, now.grads, strict=True)
            at = [
                i
                for i, (r, g) in enumerate(pairs)
                if g is not None and r not in left_out
            ]
            addresses = [0] * len(now.rows)
            for i in at:
                addresses[i] = now.grads[i].data_ptr()
            written = [now.here[i] for i in at]
            entries = [now.entries[i] for i in at]
        else:
            addresses = _addresses(now.grads)
            written, entries = now.here, now.entries
        if not written:
            return
        self._table.run(addresses, usual, now.rows.start)
        # What autograd saved of the parameters is no longer what they are.
        increment_version(written)
        if "momentum_buffer" in self._keys:
            increment_version(self._state(entries, "momentum_buffer"))

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
        for starts in (True, False):
            rows = [r for r, f in findings.items() if f and f.starts == starts]
            calls = self._calls(
                self._with_new_values(now, findings),
                rows,
                Coefficients.of(self.group, starting=starts),
            )
            yield from calls
        waiting = self._special({}) - {r for r, f in findings.items() if f}
        # A dummy step, of rate 0, leaves even the noise as it was.
        if usual.weight_decay != 0 and not _is_zero(usual.lr):
            for call in self._calls(now, waiting, usual):
                yield call._replace(update=decay)

    @staticmethod
    def _with_new_values(now: Now, findings: Mapping[int, Finding | None]) -> Now:
        """Return the step with the scales that it has found, which are not stored yet."""
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
            for key, _, versions in self._watched:
                versions[row] = entry[key]._version
        if self._table is not None:
            self._table.expect(findings)
        self._settle()

    def _settle(self) -> None:
        self._unsettled = [i for i, s in enumerate(self._stages) if s != RUNNING]

    def _block(self, now: Now, row: int) -> Block:
        at = row - now.rows.start
        entry, place = now.entries[at], self._places[row]
        grad = now.grads[at]
        held = {key: local_entries(entry[key]) for key in _BLOCK_KEYS & entry.keys()}
        if self.group["stochastic_rounding"] is False:
            held["rounding_seed"] = None
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

    def _addressed(
        self, here: Sequence[Tensor], entries: Sequence[Mapping[str, Tensor]]
    ) -> list[Sequence[Tensor]]:
        """Return all tensors that a table has the addresses of, gradients apart."""
        return [here, *(self._state(entries, key) for key in self._keys)]

    def _state(self, entries: Sequence[Mapping[str, Tensor]], key: str) -> list[Tensor]:
        tensors = [entry[key] for entry in entries]
        return list(map(local_entries, tensors)) if self._is_distributed else tensors

    def _grads(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        return list(map(local_grad if self._is_distributed else _GRAD, params))


# What of its state a block is updated with.
_BLOCK_KEYS = {
    "scale",
    "momentum_buffer",
    "momentum_scale",
    "rounding_seed",
    "row_scale",
    "column_scale",
}

# Sizes, strides and dtypes of tensors, in lists that Python compares quickly.
_Forms = tuple[list[torch.Size], list[tuple[int, ...]], list[torch.dtype]]


def _forms(tensors: Sequence[Tensor]) -> _Forms:
    return (
        list(map(Tensor.size, tensors)),
        list(map(Tensor.stride, tensors)),
        list(map(_DTYPE, tensors)),
    )


def _are(tensors: Sequence[Tensor], forms: _Forms, at: slice) -> bool:
    sizes, strides, dtypes = forms
    return (
        list(map(Tensor.size, tensors)) == sizes[at]
        and list(map(Tensor.stride, tensors)) == strides[at]
        and list(map(_DTYPE, tensors)) == dtypes[at]
    )


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _plain(grads: list[Tensor | None]) -> list[Tensor | None]:
    """Replace gradients that are but marked as negated or zero by what they read as."""
    for i, grad in enumerate(grads):
        if grad is None:
            continue
        if grad.is_neg():
            grads[i] = grad.resolve_neg()
        elif grad._is_zerotensor():
            grads[i] = torch.zeros_like(grad)
    return grads


def _is_zero(lr: float | Tensor) -> bool:
    # What a tensor holds only its device knows.
    return not isinstance(lr, Tensor) and lr == 0
