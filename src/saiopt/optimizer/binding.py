"""What one step shares with the next: checks, state, stages, and kernels' tables.

Everything that can be asked once is asked when an optimizer's blocks are bound. A step
asks in bulk whether what was bound is still there, decides what it does to which block,
lets the executions do it, and only then writes down what has become of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from saiopt.distributed.matrices import Spread, spread_of
from saiopt.distributed.shards import is_dtensor
from saiopt.scaling import rule_of
from saiopt.update import Execution, choose, warn_of_slow_codes

from . import calibration, options, state
from .calibration import Finding
from .conversion import convert_momentum
from .lane import MEASURING, RUNNING, WAITING, Call, Gradients, Lane, Now, preset_of
from .sharing import Sharing

Groups = list[dict[str, Any]]
States = MutableMapping[Any, Any]

# Options on which a binding rests, and those that schedules change at every step.
_FIXED = itemgetter(
    "scaling",
    "calibration_steps",
    "stacked",
    "replicated",
    "foreach",
    "fused",
    "state_dtype",
    "stochastic_rounding",
)
_CHANGING = itemgetter(
    "momentum", "eps", "weight_decay", "maximize", "lr_multiplier", "bucket_cap_mb"
)
Taken = list[tuple[Lane, Now]]


class Binding:
    """Own the blocks of an optimizer, until what it was made from changes.

    Making it checks everything and gives every parameter that may train a complete
    state. It is the only one that writes scales, seeds and what was measured.

    Args:
        groups: all param groups of the optimizer.
        states: its state by parameter, and what wrappers put there; changed in place.
        shapes: of the parameters that the optimizer was given.
        grads: of the present step.
        also: frozen parameters that need a state too.

    Raises:
        RuntimeError: a gradient is sparse, a parameter has changed its shape or lost
            its memory, or an execution or a state dtype that was asked for does not
            exist for it.
        TypeError: a parameter that trains cannot be updated, or an option that was
            changed in a group is of the wrong kind.
        ValueError: such an option is out of its range.
    """

    def __init__(
        self,
        groups: Groups,
        states: States,
        shapes: Collection[torch.Size],
        grads: Gradients,
        also: Collection[Tensor] = (),
    ) -> None:
        self._groups = groups
        for group in groups:
            group.update(options.normalised(group))
            options.check_group(group, reads=_is_on_host(group["lr"]))
        self._options = list(map(_Options, groups))
        self._ids = [list(map(id, g["params"])) for g in groups]
        self._live = [
            [i for i, p in enumerate(group["params"]) if _trains(p) or p in also]
            for group in groups
        ]
        self._idle = [
            sorted(set(range(len(g["params"]))) - set(live))
            for g, live in zip(groups, self._live, strict=True)
        ]
        self._idle_ids = {
            id(group["params"][i])
            for group, idle in zip(groups, self._idle, strict=True)
            for i in idle
        }
        self._is_traced = state.is_traced()
        executions = self._check(states, shapes)
        spreads = self._find_spreads()
        self._sharing = Sharing(list(spreads.values()))
        fresh = self._allocate(states)
        self._make_lanes(states, executions, fresh, grads, spreads)
        self.needs_all_blocks = any(
            rule_of(g["scaling"]).needs_all_blocks for g in groups
        )

    # Making it

    def _blocks(self) -> Iterator[tuple[dict[str, Any], int, Tensor]]:
        """Yield group, place in it and parameter of every block."""
        for group, live in zip(self._groups, self._live, strict=True):
            for i in live:
                yield group, i, group["params"][i]

    def _check(
        self, states: States, shapes: Collection[torch.Size]
    ) -> dict[int, Execution | None]:
        """Refuse what can be refused, before anything changes.

        Returns:
            The execution of each block by the parameter's id.
        """
        executions: dict[int, Execution | None] = {}
        for group, i, param in self._blocks():
            name = _name(self._groups, group, i)
            options.check_trained(param, group, name)
            options.check_grad(param, name)
            entry = states.get(param, {})
            problem = state.misfit(entry, param)
            if problem:
                raise RuntimeError(f"params must fit their state: {problem}")
            if not state.is_state(entry):
                options.check_shape(param, shapes)
            if param.grad is not None:
                _check_memory(param, entry, name)
            executions[id(param)] = _execution(param, group, name)
        return executions

    def _find_spreads(self) -> dict[int, tuple[Tensor, Spread]]:
        """Find the blocks whose directions ranks share, by the parameter's id."""
        found = {}
        for group, _, param in self._blocks():
            if rule_of(group["scaling"]).direction and state.is_concrete(param):
                spread = spread_of(
                    param, stacked=group["stacked"], replicated=group["replicated"]
                )
                if spread is not None:
                    found[id(param)] = (param, spread)
        return found

    def _allocate(self, states: States) -> set[int]:
        """Give every block what its state lacks.

        Returns:
            The ids of the parameters that had none.
        """
        fresh, seedless = set(), []
        # What is made under inference mode could not be updated outside of it.
        with torch.inference_mode(False):
            for group, _, param in self._blocks():
                entry = states.get(param) or {}
                if not state.is_state(entry):
                    fresh.add(id(param))
                entry.update(state.ordinary_tensors(entry))
                rule = state.finer_rule(group)
                if state.is_state(entry) and group.get("scaled_by", rule) != rule:
                    entry["scale"] = torch.zeros_like(entry["scale"])
                for key in state.obsolete(entry, group):
                    del entry[key]
                entry.update(state.complete(entry, param, group))
                convert_momentum(entry, param, group)
                states[param] = entry
                if state.lacks_seed(entry, param, group):
                    seedless.append(param)
            for group in self._groups:
                group["scaled_by"] = state.finer_rule(group)
            if seedless:
                seeds = state.first_seeds(seedless)
                for param, seed in zip(seedless, seeds, strict=True):
                    states[param]["rounding_seed"] = seed
        return fresh

    def _make_lanes(
        self,
        states: States,
        executions: dict[int, Execution | None],
        fresh: Collection[int],
        grads: Gradients,
        shared: Collection[int],
    ) -> None:
        stages = _stages(list(self._blocks()), states, fresh)
        slots = {id(p): i for i, p in enumerate(states) if isinstance(p, Tensor)}
        self._num_entries = len(states)
        self._lanes: list[tuple[Lane, int, Pick, Pick]] = []
        self._lane_of: dict[int, tuple[Lane, int, int]] = {}
        for index, (group, live) in enumerate(
            zip(self._groups, self._live, strict=True)
        ):
            kinds: dict[tuple[Any, ...], list[int]] = {}
            for i in live:
                param = group["params"][i]
                keys = tuple(k for k in state.KEYS if k in states[param])
                memory = (param.device, state.is_concrete(param), is_dtensor(param))
                is_shared = id(param) in shared
                kind = (keys, executions[id(param)], is_shared, *memory)
                kinds.setdefault(kind, []).append(i)
            for (keys, execution, is_shared, *_), places in kinds.items():
                params = [group["params"][i] for i in places]
                lane = Lane(
                    group,
                    keys,
                    execution,
                    params,
                    [states[p] for p in params],
                    [stages[id(p)] for p in params],
                    grads,
                    is_shared=is_shared,
                )
                entries = _pick([slots[id(p)] for p in params])
                self._lanes.append((lane, index, _pick(places), entries))
                self._lane_of |= {
                    id(p): (lane, row, index) for row, p in enumerate(params)
                }

    # Using it

    def take(self, groups: Groups, states: States, grads: Gradients) -> Taken | None:
        """Collect the tensors of a step, if all is as it was bound.

        Args:
            groups: all param groups of the optimizer.
            states: its state.
            grads: of the present step.

        Returns:
            The tensors by lane; None where a new binding must be made.

        Raises:
            TypeError: a learning rate is of the wrong kind.
            ValueError: a learning rate is out of its range.
        """
        if len(groups) != len(self._options) or len(states) != self._num_entries:
            return None
        if state.is_traced() != self._is_traced:
            return None
        for index, group in enumerate(groups):
            if not self._options[index].allow(group):
                return None
            params = group["params"]
            if list(map(id, params)) != self._ids[index]:
                return None
            if any(_trains(params[i]) for i in self._idle[index]):
                return None
        held = list(states.values())
        taken = []
        # What is no tensor any more, or sparse, is what a new binding looks at.
        try:
            for lane, index, params, entries in self._lanes:
                chosen = params(groups[index]["params"])
                now = lane.gather(chosen, entries(held), range(len(chosen)), grads)
                if now is None:
                    return None
                taken.append((lane, now))
        except (AttributeError, KeyError, TypeError, RuntimeError):
            return None
        return taken

    def take_one(
        self, groups: Groups, states: States, grads: Gradients, param: Tensor
    ) -> Taken | None:
        """Collect the tensors of one parameter's step, and look at no other.

        Args:
            groups: all param groups of the optimizer.
            states: its state.
            grads: of the present step.
            param: the parameter.

        Returns:
            As :meth:`take`; empty for a parameter that does not train.
        """
        if groups is not self._groups or state.is_traced() != self._is_traced:
            return None
        if id(param) in self._idle_ids and not _trains(param):
            return []
        lane, row, index = self._lane_of.get(id(param), (None, 0, 0))
        if lane is None:
            return None
        if not self._options[index].allow(groups[index]):
            return None
        try:
            entry = states.get(param, {})
            now = lane.gather([param], [entry], range(row, row + 1), grads)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            return None
        return None if now is None else [(lane, now)]

    def step(self, taken: Taken) -> None:
        """Update blocks, then write down what has become of them.

        Args:
            taken: their tensors.

        Raises:
            RuntimeError: see :meth:`saiopt.optimizer.sharing.Sharing.step`.
            ValueError: see :func:`saiopt.optimizer.calibration.find`. In both cases
                nothing has changed.
        """
        found, largest = self._find(taken)
        self._share(taken, found)
        for (lane, now), findings in zip(taken, found, strict=True):
            lane.run(now, findings)
        if largest:
            for group in self._groups:
                if rule_of(group["scaling"]).needs_all_blocks:
                    group["gsnr_max"] = largest

    def calls(self, taken: Taken) -> list[Call]:
        """Return the calls of a step for a compiler to trace.

        Args:
            taken: the tensors of all blocks.

        Returns:
            The calls; none where blocks begin or measure, after having made them.
        """
        if self.needs_all_blocks or self._are_unsettled(taken):
            self.step(taken)
            return []
        self._share(taken, [{} for _ in taken])
        return [call for lane, now in taken for call in lane.ordinary_calls(now)]

    def _share(self, taken: Taken, found: Sequence[dict[int, Finding | None]]) -> None:
        """Update the blocks whose directions ranks share, all together."""
        pairs = zip(taken, found, strict=True)
        parts = [p for (lane, now), its in pairs for p in lane.parts(now, its)]
        if parts:
            self._sharing.step(parts)

    @staticmethod
    def _are_unsettled(taken: Taken) -> bool:
        return any(lane.is_unsettled for lane, _ in taken)

    def _find(self, taken: Taken) -> tuple[list[dict[int, Finding | None]], float]:
        """Ask what the gradients of blocks that are not settled say."""
        nothing: list[dict[int, Finding | None]] = [{} for _ in taken]
        if not self.needs_all_blocks and not self._are_unsettled(taken):
            return nothing, 0.0
        rows = [
            (at, row, candidate)
            for at, (lane, now) in enumerate(taken)
            for row, candidate in lane.candidates(now)
        ]
        if not rows and (
            self._is_traced or not calibration.awaits_largest(self._groups)
        ):
            return nothing, 0.0
        found, largest = calibration.find([c for *_, c in rows], self._groups)
        for (at, row, _), finding in zip(rows, found, strict=True):
            nothing[at][row] = finding
        return nothing, largest


Pick = Callable[[Sequence[Any]], Sequence[Any]]


def _pick(places: Sequence[int]) -> Pick:
    """Return what picks some of a list's items, in C."""
    if len(places) == 1:
        return lambda items: (items[places[0]],)
    return itemgetter(*places)


class _Options:
    """Know the options of a group as they were checked, and check what is new."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self._fixed, self._changing = _FIXED(group), _CHANGING(group)
        # A rate that is a tensor, and the version of its value.
        self._lr: tuple[object, int] = (None, 0)

    def allow(self, group: dict[str, Any]) -> bool:
        """Tell whether blocks that were bound under these options can step.

        Raises:
            TypeError: an option is of the wrong kind.
            ValueError: an option is out of its range.
        """
        if group is not self.group or not _are_same(_FIXED(group), self._fixed):
            return False
        self._check_lr(group)
        changing = _CHANGING(group)
        if not _are_same(changing, self._changing):
            group.update(options.normalised(group))
            options.check_group(group, reads=False)
            kept, self._changing = self._changing, _CHANGING(group)
            # Whether there is a momentum decides what a state consists of.
            return (kept[0] == 0) == (self._changing[0] == 0)
        return True

    def _check_lr(self, group: dict[str, Any]) -> None:
        """Check a rate, one on the host once for each value that it gets."""
        lr = group["lr"]
        if type(lr) is float and 0 <= lr < float("inf"):
            return
        group.update(options.normalised({"lr": lr}))
        lr, note = group["lr"], (None, 0)
        if isinstance(lr, Tensor) and not lr.is_inference():
            note = (lr, lr._version)
        is_new = self._lr[0] is not lr or self._lr[1] != note[1]
        options.check_lr(lr, reads=is_new and _is_on_host(lr))
        self._lr = note


def _are_same(options: Sequence[object], bound: Sequence[object]) -> bool:
    """Tell whether options are those that were checked, and of their types.

    True is 1, and to compare arrays gives arrays.
    """
    if all(map(is_, options, bound)):
        return True
    return list(map(type, options)) == list(map(type, bound)) and options == bound


def _is_on_host(lr: object) -> bool:
    """Tell whether a rate can be read without waiting for a device."""
    return not isinstance(lr, Tensor) or (lr.is_cpu and state.is_concrete(lr))


def _trains(param: Tensor) -> bool:
    return param.requires_grad or param.grad is not None


def _execution(param: Tensor, group: dict[str, Any], name: str) -> Execution | None:
    """Choose an execution, None where no gradient asks for one that there is not."""
    foreach, fused = group["foreach"], group["fused"]
    if not (param.is_meta or state.is_concrete(param)):
        # A tracer sees operations only.
        return choose(param, foreach=foreach, fused=False)
    try:
        chosen = choose(param, foreach=foreach, fused=fused)
    except RuntimeError as error:
        if param.grad is not None:
            raise RuntimeError(f"{error} for {name}") from None
        return None
    if chosen.kernel is None and fused is None and foreach is None and param.is_cpu:
        asked = group["state_dtype"] not in (None, "float32")
        if asked and param.dtype in (torch.float32, torch.bfloat16):
            warn_of_slow_codes()
    return chosen


def _check_memory(param: Tensor, entry: Any, name: str) -> None:  # noqa: ANN401
    tensors = {"params": param, "gradients": param.grad}
    if state.is_state(entry):
        tensors |= {k: entry[k] for k in state.KEYS if entry.get(k) is not None}
    for key, tensor in tensors.items():
        problem = state.lacks_memory(tensor)
        if problem:
            raise RuntimeError(f"{key} {problem} for {name}")


def _name(groups: Groups, group: dict[str, Any], i: int) -> str:
    """Name a parameter as the user knows it."""
    names = group.get("param_names")
    if names:
        return repr(names[i])
    index = next(k for k, g in enumerate(groups) if g is group)
    return f"parameter {i} of group {index}"


def _stages(
    blocks: Sequence[tuple[dict[str, Any], int, Tensor]],
    states: States,
    fresh: Collection[int],
) -> dict[int, tuple[int, float]]:
    """Read from the devices how far blocks are, with one synchronisation for each.

    Returns:
        Stage and preset scale by the parameter's id.
    """
    found = {id(p): (WAITING, 0.0) for _, _, p in blocks}
    by_device: dict[torch.device, list[tuple[dict[str, Any], Tensor]]] = {}
    for group, _, param in blocks:
        if not state.is_concrete(param):
            # Nothing can be read: what is traced or estimated is an ordinary step.
            found[id(param)] = (RUNNING, 0.0)
        elif id(param) not in fresh:
            device = states[param]["scale"].device
            by_device.setdefault(device, []).append((group, param))
    for members in by_device.values():
        scales = torch.stack([states[p]["scale"] for _, p in members]).tolist()
        for (group, param), scale in zip(members, scales, strict=True):
            found[id(param)] = _stage(scale, states[param], group)
    return found


def _stage(
    scale: float, entry: dict[str, Tensor], group: dict[str, Any]
) -> tuple[int, float]:
    preset = preset_of(scale)
    if preset is not None:
        return WAITING, preset
    asked = options.num_gradients(group)
    measures = "num_measured" in entry and entry["num_measured"].item() < asked
    return (MEASURING if measures else RUNNING), 0.0
