"""Reading a state_dict: keeping its dtypes, and reading the authors' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saiopt.distributed.fsdp1 import is_slice
from saiopt.distributed.shards import largest_over_ranks, largest_over_slices

from .state import SCALARS, misfit

# Stands for a scaling in a state_dict: flattened distributed checkpoints load the keys
# that they have saved.
A_CALLABLE = "callable"


@dataclass(frozen=True)
class Kept:
    """Carry a tensor through ``Optimizer.load_state_dict``, which casts bare ones.

    Args:
        value: the tensor as it was saved.
    """

    value: Tensor


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
    """Shield the tensors of a state_dict from being cast to the parameters' dtype.

    Args:
        state_dict: of this optimizer, or of the authors' class.

    Returns:
        A state_dict whose state tensors are :class:`Kept`.
    """
    state = {
        index: {
            key: Kept(value) if isinstance(value, Tensor) else value
            for key, value in _own_keys(entry).items()
        }
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def unwrap(
    state: Mapping[Tensor, Mapping[str, Any]],
    held: Mapping[Tensor, Mapping[str, Any]],
) -> dict[Tensor, dict[str, Any]]:
    """Take the tensors out again and place them beside their parameters.

    Args:
        state: state by parameter, tensors perhaps :class:`Kept`.
        held: the state that it replaces.

    Returns:
        State by parameter, without empty entries and what belongs to no parameter.
        Tensors are copies, so that two optimizers never share one, except those that
        this optimizer holds already.
    """
    return {
        param: {
            key: _place(value.value, param, held.get(param, {}).get(key))
            if isinstance(value, Kept)
            else value
            for key, value in entry.items()
        }
        for param, entry in state.items()
        if isinstance(param, Tensor) and entry
    }


def check_loaded(state: dict[Tensor, dict[str, Any]], params: Sequence[Tensor]) -> None:
    """Check that loaded state is of SGD-SaI and fits the parameters that it is for.

    FSDP1's checkpoints give a rank no state of blocks of which it holds nothing. What
    the other ranks know of those is added: one collective for each process group that
    slices blocks. One more over all ranks lets them refuse together.

    Args:
        state: state by parameter, completed in place.
        params: all parameters of the optimizer.

    Raises:
        ValueError: it is another optimizer's, or a tensor has another form than its
            parameter needs, or a part of a block has none; on any rank, under FSDP1.
    """
    problem = _misfit(state)
    slices = [p for p in params if is_slice(p)]
    if slices:
        incomplete = _complete_slices(state, slices)
        problem = problem or incomplete
        if largest_over_ranks(float(bool(problem))) > 0 and not problem:
            problem = "state_dict must fit the parameters on every rank, got a misfit"
    if problem:
        raise ValueError(problem)


def _misfit(state: Mapping[Tensor, Mapping[str, Any]]) -> str:
    """Return why a state cannot be loaded, "" if it can."""
    for param, entry in state.items():
        if "scale" not in entry:
            return (
                "state_dict must be of SGDSaI or of the authors' SGD_sai, "
                f"got an entry with {', '.join(map(str, entry))}"
            )
        problem = misfit(entry, param)
        if problem:
            return f"state_dict must fit the parameters: {problem}"
    return ""


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
                "state_dict must have the state of all parts of a block, got no "
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


def fill_in(
    groups: Sequence[dict[str, Any]],
    held: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
) -> None:
    """Give loaded groups what they lack, and keep the choice of execution.

    How a step is executed belongs to the machine, not to the run: a checkpoint from an
    accelerator continues on a CPU.

    Args:
        groups: the loaded groups, changed in place.
        held: the groups that they replace, in the same order; empty where an optimizer
            is unpickled.
        defaults: the optimizer's own options.
    """
    for group, old in zip(groups, held or [defaults] * len(groups), strict=True):
        for key, value in old.items():
            group.setdefault(key, value)
        if group["scaling"] == A_CALLABLE:
            group["scaling"] = old["scaling"]
        if held:
            group.update(foreach=old["foreach"], fused=old["fused"])


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
    if not (scale.isfinite() & (scale > 0)):
        own["scale"] = torch.zeros_like(scale)
        if "momentum_buffer" in entry:
            own["momentum_buffer"] = torch.zeros_like(entry["momentum_buffer"])
    return own


def _place(value: Tensor, param: Tensor, held: object) -> Tensor:
    if value is held:
        return value
    return value.to(param.device, copy=True)
