"""Tensors of which every process holds a part, and how they become whole again."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from saiopt.lab.optimizers import set_mode
from saiopt.lab.training.ranks import Ranks

_T = TypeVar("_T")


def whole(tensor: Tensor) -> Tensor:
    """Gather the shards of a tensor, which every process must do together.

    Args:
        tensor: Sharded or not.

    Returns:
        The tensor as one process alone would have it.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: _T, ranks: Ranks) -> _T:
    """Gather the shards in a state_dict on the first process.

    Every process takes part, and on none does more than one whole tensor lie on the
    device at a time.

    Args:
        state: Dictionaries and lists of tensors and plain values.
        ranks: The processes that share it.

    Returns:
        The same as one process alone would have it, what was sharded on the CPU; on
        the other processes None stands where shards were.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return cast("_T", full.cpu() if ranks.is_first else None)
    if isinstance(state, dict):
        return cast("_T", {key: gathered(v, ranks) for key, v in state.items()})
    if isinstance(state, list):
        return cast("_T", [gathered(value, ranks) for value in state])
    return state


def load_model(model: nn.Module, state: dict[str, Any]) -> None:
    """Load whole tensors into a model that may be sharded.

    Args:
        model: Of any layout.
        state: What :func:`gathered` made of its ``state_dict()``.
    """
    held = model.state_dict()
    model.load_state_dict({k: _like(value, held.get(k)) for k, value in state.items()})


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load whole tensors into the optimizer of a model that may be sharded.

    Args:
        optimizer: Of any layout; its model's weights are still to be loaded.
        state: What :func:`gathered` made of its ``state_dict()``.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if any(isinstance(param, DTensor) for param in params):
        _allocate(optimizer)
        entries = {
            index: _laid_out(entry, params[index], optimizer.state[params[index]])
            for index, entry in state["state"].items()
        }
        state = {**state, "state": entries}
    optimizer.load_state_dict(state)


def _allocate(optimizer: Optimizer) -> None:
    """Let an optimizer make its state, which tells how it lays each tensor out.

    Not every tensor of it is laid out like its parameter, and shapes do not say which.
    """
    set_mode(optimizer, training=True)
    for group in optimizer.param_groups:
        # Zero, so that nothing moves but what is about to be loaded.
        group["lr"] = 0.0
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad()


def _laid_out(
    entry: Mapping[str, object], param: Tensor, held: Mapping[str, object]
) -> dict[str, object]:
    """Lay the state of a parameter out like what is held, or like the parameter."""
    return {key: _like(value, held.get(key, param)) for key, value in entry.items()}


def _like(value: object, held: object) -> object:
    """Lay a whole tensor out like another one of its shape."""
    if not isinstance(value, Tensor) or not isinstance(held, DTensor):
        return value
    if value.shape != held.shape:
        return value
    local = value.to(held.device)
    return distribute_tensor(local, held.device_mesh, held.placements)
