"""Reading a state_dict: keeping its dtypes, and reading the authors' own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from saiopt.distributed.fsdp1 import is_slice
from saiopt.distributed.shards import largest_over_ranks, largest_over_slices

from . import options
from .conversion import convert_momentum, holds_bare_codes
from .state import SCALARS, finer_rule, is_concrete, misfit
from .wrappers import bare_name

# Stands for a scaling in a state_dict: flattened distributed checkpoints load the keys
# that they have saved.
A_CALLABLE = "callable"
# The options of the authors' class, which this one has too, and some of which others
# lack; and options that those have of torch's optimizers that lack none.
_OPTIONS = {"lr", "momentum", "eps", "weight_decay"}
_OTHERS_OPTIONS = {"betas", "dampening", "nesterov", "alpha"}


@dataclass(frozen=True)
class Kept:
    """Carry a value through ``Optimizer.load_state_dict``, which casts bare tensors.

    Args:
        value: as it was saved.
    """

    value: Any


def without_idle_seed(entry: dict[str, Any], param: Tensor) -> dict[str, Any]:
    """Leave out the rounding seed where FSDP1 gave a rank nothing of a block.

    It stands still while those of the other ranks advance, and FSDP1's checkpoints
    refuse numbers that differ.

    Args:
        entry: a state by key.
        param: its parameter.

    Returns:
        What to save of it.
    """
    if param.numel() > 0 or not is_slice(param):
        return entry
    return {key: value for key, value in entry.items() if key != "rounding_seed"}


def keep(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Shield a state_dict from torch, which casts tensors to the parameters' dtype.

    Args:
        state_dict: of this optimizer, or of the authors' class.

    Returns:
        A state_dict where what belongs to parameters is :class:`Kept`.
    """
    indices = {i for group in state_dict["param_groups"] for i in group["params"]}
    state = {
        index: {key: Kept(value) for key, value in _own_keys(entry).items()}
        if index in indices and isinstance(entry, Mapping)
        else entry
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def unwrap(state: Mapping[Any, Any], held: Mapping[Any, Any]) -> dict[Any, Any]:
    """Take out what was kept, and place its tensors beside their parameters.

    Args:
        state: state by parameter, its values perhaps :class:`Kept`, and entries that
            belong to no parameter.
        held: the state that it replaces.

    Returns:
        The same without empty entries of parameters. Tensors are copies, so that two
        optimizers never share one, except those that this optimizer holds already.
    """
    found = {}
    for key, entry in state.items():
        if not isinstance(key, Tensor) or not isinstance(entry, Mapping):
            found[key] = entry
        elif entry:
            old = held.get(key)
            found[key] = _taken_out(entry, key, old if isinstance(old, Mapping) else {})
    return found


def read(
    state: Mapping[Any, Any],
    held: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
) -> dict[Any, Any]:
    """Unwrap, check and convert the state of one parameter after the other.

    So that no more than one is there in two forms. FSDP1's checkpoints give a rank no
    state of blocks of which it holds nothing: what the other ranks know of those is
    added, by one collective for each process group that slices blocks, and one more
    over all ranks lets them refuse together.

    Args:
        state: see :func:`unwrap`.
        held: the state that it replaces.
        groups: the param groups from now on.

    Returns:
        See :func:`unwrap`.

    Raises:
        RuntimeError: see :func:`saiopt.optimizer.conversion.convert_momentum`.
        ValueError: a tensor has another form than its parameter needs, or a part of a
            block has none; on any rank, under FSDP1.
    """
    group_of = {param: group for group in groups for param in group["params"]}
    found: dict[Any, Any] = {}
    problem = ""
    for key, wrapped in state.items():
        for entry in unwrap({key: wrapped}, held).values():
            if isinstance(key, Tensor):
                problem = problem or misfit(entry, key)
                if not problem and key in group_of:
                    convert_momentum(entry, key, group_of[key])
            found[key] = entry
    slices = [param for param in group_of if is_slice(param)]
    if slices:
        incomplete = _complete_slices(found, slices)
        problem = problem or incomplete
        if largest_over_ranks(float(bool(problem))) > 0 and not problem:
            problem = "another rank has a misfit"
    if problem:
        raise ValueError(f"state_dict must fit the parameters: {problem}")
    return found


def check_kind(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Check that state and options are of SGD-SaI, whichever release's.

    Args:
        state: see :func:`unwrap`. Entries of parameters that have no scale are a
            wrapper's, where the groups are of this class.
        groups: the param groups that were saved with it.

    Raises:
        ValueError: they are another optimizer's, or lost the scales of its codes.
    """
    is_own = all("scaling" in group for group in groups)
    for param, entry in state.items():
        if is_own or not isinstance(param, Tensor) or not isinstance(entry, Mapping):
            continue
        if entry and "scale" not in entry:
            raise ValueError(_foreign("an entry", entry))
    for group in groups:
        others = _OTHERS_OPTIONS & group.keys() and "scaling" not in group
        if others or not group.keys() >= _OPTIONS:
            found = (key for key in group if key != "params")
            raise ValueError(_foreign("a param group", found))
        for param in group["params"]:
            held = state.get(param)
            entry: dict[str, Any] = {
                key: value.value
                for key, value in (held.items() if isinstance(held, Mapping) else ())
                if isinstance(value, Kept)
            }
            if holds_bare_codes(entry, param, group):
                raise ValueError(
                    "state_dict must have codes with their scales, got codes that were "
                    f"read as {entry['momentum_buffer'].dtype}: load it where layout "
                    f"and state_dtype are the checkpoint's, {group['state_dtype']!r}, "
                    "and set another state_dtype afterwards"
                )


def _foreign(kind: str, keys: Iterable[object]) -> str:
    return (
        "state_dict must be of SGDSaI or of the authors' SGD_sai, "
        f"got {kind} with {', '.join(map(str, keys))}"
    )


def check_places(
    groups: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]]
) -> None:
    """Check that parameters stand where the optimizer has those of the same names.

    Args:
        groups: the param groups of a state_dict. Those of distributed checkpoints have
            names in the places of parameters. Torch refuses other sizes.
        held: the optimizer's own.

    Raises:
        ValueError: a parameter stands elsewhere.
    """
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in held]:
        return
    own = {(k, i): name for k, g in enumerate(held) for i, name in _names(g)}
    places: dict[str, set[tuple[int, int]]] = {}
    for place, name in own.items():
        places.setdefault(name, set()).add(place)
    for k, group in enumerate(groups):
        for i, name in _names(group):
            there = places.get(name)
            if there is not None and (k, i) not in there:
                raise ValueError(
                    "state_dict must have its parameters in the optimizer's order and "
                    f"groups, got {name!r} as parameter {i} of group {k}, which is "
                    f"{own.get((k, i))!r} here"
                )


def _names(group: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    named = [param for param in group["params"] if isinstance(param, str)]
    names = named or group.get("param_names") or ()
    return ((i, bare_name(name, of_any_layout=True)) for i, name in enumerate(names))


def _complete_slices(
    state: dict[Tensor, dict[str, Any]], slices: Sequence[Tensor]
) -> str:
    """Add what other ranks know of blocks of which this one holds nothing.

    Returns:
        Why the state cannot be completed, "" if it can.
    """
    rows = [_known(state.get(p, {})) for p in slices]
    values = torch.tensor(rows, dtype=torch.float64, device="cpu")
    largest = largest_over_slices(slices, values).tolist()
    for param, here, there in zip(slices, rows, largest, strict=True):
        pairs = zip(_KNOWN, here, there, strict=True)
        lacking = {key: value for key, own, value in pairs if own == _UNKNOWN < value}
        if lacking and param.numel() > 0:
            return (
                "there must be a state of all parts of a block, got no "
                f"{', '.join(lacking)} for a part of {param.numel()} entries"
            )
        if lacking:
            entry = state.setdefault(param, {})
            entry.update({k: _made(k, value, param) for k, value in lacking.items()})
    return ""


# What ranks tell of a slice: the scalars of its state, and the dtype of its momentum.
_KNOWN = (*SCALARS, "momentum_buffer")
_UNKNOWN = float("-inf")
_MOMENTUM_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _known(entry: Mapping[str, Any]) -> list[float]:
    dtype = getattr(entry.get("momentum_buffer"), "dtype", None)
    is_held = dtype in _MOMENTUM_DTYPES
    return [
        *(_number(entry.get(key)) for key in SCALARS),
        _MOMENTUM_DTYPES.index(dtype) if is_held else _UNKNOWN,
    ]


def _number(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return _UNKNOWN


def _made(key: str, value: float, param: Tensor) -> Tensor:
    if key in SCALARS:
        return torch.tensor(value, dtype=SCALARS[key].dtype, device=param.device)
    return torch.zeros_like(param, dtype=_MOMENTUM_DTYPES[int(value)])


# Options that version 0.1 did not have.
_LATER = {
    **options.OF_GROUPS,
    "calibration_steps": None,
    "replicated": False,
    "bucket_cap_mb": 25.0,
}


# How a step is executed, and on which ranks; and what the model calls its parameters.
_OF_THE_MACHINE = ("foreach", "fused", "replicated", "bucket_cap_mb", "param_names")


def fill_in(
    groups: Sequence[dict[str, Any]],
    held: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
) -> None:
    """Give loaded groups what they lack, and keep what is not the run's.

    How a step is executed belongs to the machine: a checkpoint from an accelerator
    continues on a CPU. Names belong to the model, and the dtype of the momentum, where
    one was asked for, to the memory that there is.

    Args:
        groups: the loaded groups, changed in place.
        held: the groups that they replace, in the same order; empty where an optimizer
            is unpickled.
        defaults: the optimizer's own options.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: an option is out of its range.
    """
    for group, old in zip(groups, held or [defaults] * len(groups), strict=True):
        group.setdefault("scaled_by", finer_rule({**_LATER, **old, **group}))
        for key, value in {**_LATER, **old}.items():
            group.setdefault(key, value)
        if group["scaling"] == A_CALLABLE:
            group["scaling"] = old["scaling"]
        if held:
            kept = {k: old[k] for k in _OF_THE_MACHINE if k in old}
            if old["state_dtype"] is not None:
                kept["state_dtype"] = old["state_dtype"]
            group.update(options.normalised({**group, **kept}))
            options.check_group(group, reads=False)


def _own_keys(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the authors' `gsnr`; a block that it froze or poisoned starts anew."""
    if "gsnr" not in entry:
        return dict(entry)
    own = {key: value for key, value in entry.items() if key != "gsnr"}
    gsnr = entry["gsnr"]
    if not isinstance(gsnr, Tensor):
        gsnr = torch.tensor(gsnr, device="cpu")
    scale = gsnr.detach().to(torch.float32)
    own["scale"] = scale
    if is_concrete(scale) and not (scale.isfinite() & (scale > 0)):
        own["scale"] = torch.zeros_like(scale)
        if "momentum_buffer" in entry:
            own["momentum_buffer"] = torch.zeros_like(entry["momentum_buffer"])
    return own


def _taken_out(
    entry: Mapping[str, Any], param: Tensor, held: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        key: _place(value.value, param, held.get(key))
        if isinstance(value, Kept)
        else value
        for key, value in entry.items()
    }


def _place(value: object, param: Tensor, held: object) -> object:
    if value is held:
        return value
    # A wrapper's values may hold tensors too.
    return tree_map_only(Tensor, lambda t: t.to(param.device, copy=True), value)
