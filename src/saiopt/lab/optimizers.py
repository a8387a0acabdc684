"""The optimizers that a recipe can be trained with, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.optimizer import SGDSaI
from saiopt.param_groups import decay_groups
from saiopt.scaling import NamedScaling


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """How the lab builds one optimizer.

    Args:
        build: Called as ``build(model, lr, weight_decay, **settings)``, where the
            decoupled decay per step is to be ``lr * weight_decay``.
        settings: Everything beyond learning rate and decay; part of a run's
            identity.
        source: Where the settings come from.
        lr_of: Optimizer whose learning rate serves where a recipe has no own one.
    """

    build: Callable[..., Optimizer]
    settings: Mapping[str, Any]
    source: str
    lr_of: str | None = None


# Settings are JSON types: a dtype goes by its name.
_STATE_DTYPES: dict[str | None, torch.dtype | Literal["int4"] | None] = {
    None: None,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": "int4",
}


def _sgdsai(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    eps: float,
    scaling: NamedScaling,
    state_dtype: str | None = None,
) -> Optimizer:
    return SGDSaI(
        decay_groups(model, weight_decay),
        lr=lr,
        momentum=momentum,
        eps=eps,
        scaling=scaling,
        state_dtype=_STATE_DTYPES[state_dtype],
    )


def _adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    groups = decay_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


def _sgd(
    model: nn.Module, lr: float, weight_decay: float, *, momentum: float
) -> Optimizer:
    # Coupled decay passes through the momentum buffer, which multiplies it by
    # 1/(1-momentum); this undoes it, so that a step decays by lr * weight_decay.
    coupled = weight_decay * (1 - momentum)
    return torch.optim.SGD(decay_groups(model, coupled), lr=lr, momentum=momentum)


_RELEASE = "defaults of the authors' release 1.0.3"

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgdsai": OptimizerSpec(
        _sgdsai, {"momentum": 0.9, "eps": 1e-8, "scaling": "gsnr"}, _RELEASE
    ),
    "sgdsai-sqrt-numel": OptimizerSpec(
        _sgdsai, {"momentum": 0.9, "eps": 1e-8, "scaling": "sqrt_numel"}, _RELEASE
    ),
    **{
        f"sgdsai-{suffix}": OptimizerSpec(
            _sgdsai,
            {"momentum": 0.9, "eps": 1e-8, "scaling": "gsnr", "state_dtype": name},
            f"as sgdsai, with momentum in {name}",
            lr_of="sgdsai",
        )
        for suffix, name in (("bf16", "bfloat16"), ("int8", "int8"), ("int4", "int4"))
    },
    "sgdm-decoupled": OptimizerSpec(
        _sgdsai,
        {"momentum": 0.9, "eps": 1e-8, "scaling": "none"},
        "as sgdsai, with every scale 1",
    ),
    "adamw": OptimizerSpec(
        _adamw,
        {"betas": (0.9, 0.95), "eps": 1e-8},
        "Brown et al. 2020 (GPT-3), appendix B",
    ),
    "sgd": OptimizerSpec(_sgd, {"momentum": 0.9}, "the usual momentum"),
}


def get_optimizer(name: str) -> OptimizerSpec:
    """Return an optimizer's entry by its name.

    Args:
        name: A key of ``OPTIMIZERS``.

    Returns:
        The entry.

    Raises:
        ValueError: If there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name}"
        )
    return OPTIMIZERS[name]


def state_bytes(optimizer: Optimizer) -> int:
    """Count the bytes of all tensors in an optimizer's state.

    Args:
        optimizer: After at least one step.

    Returns:
        Bytes, scalars such as step counts included.
    """
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
