"""Reading a state_dict: keeping its dtypes, and reading the authors' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .state import misfit

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


def check_loaded(state: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Check that loaded state is of SGD-SaI and fits the parameters that it is for.

    Args:
        state: state by parameter.

    Raises:
        ValueError: it is another optimizer's, or a tensor has another form than its
            parameter needs.
    """
    for param, entry in state.items():
        if "scale" not in entry:
            raise ValueError(
                "state_dict must be of SGDSaI or of the authors' SGD_sai, "
                f"got an entry with {', '.join(map(str, entry))}"
            )
        problem = misfit(entry, param)
        if problem:
            raise ValueError(f"state_dict must fit the parameters: {problem}")


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
