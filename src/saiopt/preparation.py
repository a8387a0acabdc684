"""Which parameters need a state, and whether what they have still fits them."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import options, state

Members = Sequence[tuple[dict[str, Any], Sequence[Tensor]]]


class Checked(NamedTuple):
    """Remember a state that fits its parameter, and keep none of its memory alive.

    Args:
        scale: the scale in it; a scale belongs to one state.
        buffer: the momentum in it, None where it has none.
        shape: the parameter's.
    """

    scale: Tensor
    buffer: weakref.ref[Tensor] | None
    shape: torch.Size

    def holds(self, entry: Mapping[str, Tensor], param: Tensor) -> bool:
        """Tell whether a state and its parameter are still those that were checked.

        Args:
            entry: the state by key.
            param: the parameter.

        Returns:
            Whether nothing was put in their places.
        """
        known = None if self.buffer is None else self.buffer()
        return (
            entry.get("scale") is self.scale
            and entry.get("momentum_buffer") is known
            and param.shape == self.shape
        )


# By the parameter's id: another one with the same id has another scale.
Known = Mapping[int, Checked]


def members_of(groups: Iterable[dict[str, Any]]) -> Members:
    """Return param groups with all their parameters, without empty ones.

    Args:
        groups: param groups.

    Returns:
        The groups that have a say.
    """
    return [(group, group["params"]) for group in groups if group["params"]]


def pending_of(states: Mapping[Tensor, Mapping[str, Tensor]]) -> dict[Tensor, float]:
    """Read from the device which blocks have not begun.

    Args:
        states: the state of each parameter.

    Returns:
        By parameter, the scale it was given beforehand, 0 for none.
    """
    scales = {p: entry["scale"].item() for p, entry in states.items() if entry}
    return {p: -scale for p, scale in scales.items() if scale <= 0}


def check(
    members: Members,
    states: Mapping[Tensor, Mapping[str, Tensor]],
    shapes: Container[torch.Size],
    known: Known,
) -> bool:
    """Check that gradients and states belong to their parameters.

    Args:
        members: param groups, and some of their parameters.
        states: the state of each parameter that has one.
        shapes: of the parameters that the optimizer was given.
        known: what has been checked before and is taken to be as it was.

    Returns:
        Whether a parameter has another state than is known: ZeroRedundancyOptimizer
        loads by putting its own there.

    Raises:
        RuntimeError: a gradient is sparse, or a shape has changed.
    """
    has_news = False
    for _, params in members:
        for param in params:
            options.check_grad(param)
            entry = states.get(param)
            if entry:
                checked = known.get(id(param))
                if checked is not None and checked.holds(entry, param):
                    continue
                has_news = True
                problem = state.misfit(entry, param)
                if problem:
                    raise RuntimeError(f"params must fit their state: {problem}")
            elif _trains(param):
                options.check_shape(param, shapes)
    return has_news


def known_of(states: Mapping[Tensor, Mapping[str, Tensor]]) -> Known:
    """Return what :func:`check` need not check again.

    Args:
        states: the state of each parameter.

    Returns:
        What was checked, by the parameter's id.
    """
    return {
        id(param): Checked(entry["scale"], _reference_to(entry), param.shape)
        for param, entry in states.items()
        if entry
    }


def _reference_to(entry: Mapping[str, Tensor]) -> weakref.ref[Tensor] | None:
    buffer = entry.get("momentum_buffer")
    return None if buffer is None else weakref.ref(buffer)


def are_complete(
    members: Members, states: Mapping[Tensor, Mapping[str, Tensor]]
) -> bool:
    """Tell whether no parameter lacks a state, or a part of it.

    Args:
        members: param groups, and some of their parameters.
        states: the state of each parameter that has one.

    Returns:
        False where :func:`prepare` has something to do.
    """
    for group, params in members:
        for param in params:
            entry = states.get(param)
            if state.lacks(entry, param, group) if entry else _trains(param):
                return False
    return True


def prepare(
    members: Members,
    states: MutableMapping[Tensor, dict[str, Tensor]],
    pending: MutableMapping[Tensor, float],
    also: Container[Tensor] = (),
) -> None:
    """Give a complete state to every parameter that may train.

    Args:
        members: all param groups with all their parameters.
        states: the state of each parameter, changed in place.
        pending: the preset scale of each parameter that has not begun, 0 for none,
            changed in place: those whose momentum is new join it.
        also: frozen parameters that need a state too.

    Raises:
        RuntimeError: see :func:`saiopt.state.momentum`.
        ValueError: an option that was changed in a group has no such value.
    """
    for group, _ in members:
        group.update(options.normalised(group))
        options.check_names(group)
    pairs = ((param, group) for group, params in members for param in params)
    for ordinal, (param, group) in enumerate(pairs):
        entry = states.get(param)
        if not entry:
            if _trains(param) or param in also:
                states[param] = state.allocate(param, group, ordinal)
                pending[param] = 0.0
        elif state.complete(entry, param, group, ordinal):
            # The momentum was 0 until now: it starts at the next gradient.
            entry["scale"].abs_().neg_()
            pending[param] = -entry["scale"].item()


def _trains(param: Tensor) -> bool:
    return param.requires_grad or param.grad is not None
