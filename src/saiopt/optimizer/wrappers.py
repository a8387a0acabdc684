"""What wrappers put around optimizers and models, and into parameters' names."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

# torch.compile, FSDP1 and activation checkpointing.
_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# DataParallel and DDP, whose word may also be a model's own.
_AMBIGUOUS_PARTS = {"module"}


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """Take the wrappers off an optimizer that have it as their `.optimizer`.

    Args:
        optimizer: perhaps one of accelerate's, or several around each other.

    Returns:
        The innermost.
    """
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def bare_model(model: nn.Module) -> nn.Module:
    """Take the wrappers off whose prefix `module.` may also be a model's own.

    Args:
        model: perhaps DataParallel, DDP or compiled, or several around each other.

    Returns:
        The innermost.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        # The class of torch.compile's modules would import the whole compiler.
        elif (compiled := model._modules.get("_orig_mod")) is not None:
            model = compiled
        else:
            return model


def bare_name(name: str, *, of_any_layout: bool = False) -> str:
    """Take the parts out of a parameter's name that wrappers put in.

    Args:
        name: the name.
        of_any_layout: whether to take out `module` too, where no model tells whose word
            it is.

    Returns:
        The name, which is the same in all layouts.
    """
    parts = _PARTS | _AMBIGUOUS_PARTS if of_any_layout else _PARTS
    return ".".join(part for part in name.split(".") if part not in parts)
