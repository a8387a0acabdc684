"""An optimizer that a user brings."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from saiopt.lab.optimizers import OPTIMIZERS, OptimizerSpec
from saiopt.lab.own.code import own_code
from saiopt.lab.own.reference import is_reference, resolve
from saiopt.optimizer import decay_groups

_SOURCE = "a user's own"
# What the lab gives; everything else is a setting.
_GIVEN = ("lr", "weight_decay", "seed")
_PLAIN = (bool, int, float, str, type(None))


def optimizer_names(optimizers: "list[str | Callable[..., Optimizer]]") -> list[str]:
    """Let the lab know the optimizers that a user brings.

    Args:
        optimizers: Names of the lab's, ``file.py:name`` or ``package.module:name`` of a
            user's, or the functions or classes themselves.

    Returns:
        The names by which tables and options know them: those of their functions.

    Raises:
        ValueError: If one cannot be loaded, needs what the lab does not give, or is
            named like one of the lab's.
    """
    return [_known_name(optimizer) for optimizer in optimizers]


def _known_name(optimizer: "str | Callable[..., Any]") -> str:
    if isinstance(optimizer, str):
        if not is_reference(optimizer):
            return optimizer
        found: Any = resolve("optimizer", optimizer)
        if not callable(found):
            raise ValueError(
                "optimizer must be a function or a class, got a "
                f"{type(found).__name__} from {optimizer}"
            )
        optimizer = found
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    if name in OPTIMIZERS and OPTIMIZERS[name].source != _SOURCE:
        raise ValueError(f"optimizer must have a name that the lab has not, got {name}")
    OPTIMIZERS[name] = own_optimizer(optimizer)
    return name


def own_optimizer(build: Callable[..., Optimizer]) -> OptimizerSpec:
    """Describe a user's optimizer as the lab describes its own.

    Args:
        build: Called with what its parameters are named like: ``model``, or else param
            groups first, of which biases, norms and other 1-D parameters do not decay;
            ``lr``, ``weight_decay`` λ and ``seed`` where it has them. Every other
            parameter is a setting and needs a default.

    Returns:
        The entry.

    Raises:
        ValueError: If it needs anything else.
    """
    parameters = list(inspect.signature(build).parameters.values())
    if not parameters:
        raise ValueError("optimizer must take params or model, got one without either")
    first, *others = parameters
    named = [p for p in others if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    missing = [p.name for p in named if p.name not in _GIVEN and p.default is p.empty]
    if missing:
        raise ValueError(
            f"optimizer must need no more than params or model, {', '.join(_GIVEN)}, "
            f"got one that needs {', '.join(missing)}"
        )
    takes = {p.name for p in named}

    def built(
        model: nn.Module, lr: float, weight_decay: float, **settings: object
    ) -> Optimizer:
        given = {"lr": lr, "weight_decay": weight_decay}
        arguments = {name: value for name, value in given.items() if name in takes}
        whole = first.name == "model"
        target = model if whole else decay_groups(model, weight_decay)
        made = build(target, **arguments, **settings)
        if not isinstance(made, Optimizer):
            raise ValueError(
                "optimizer must be a torch.optim.Optimizer, got a function that "
                f"returns a {type(made).__name__}"
            )
        return made

    return OptimizerSpec(
        built,
        {
            p.name: p.default
            for p in named
            if p.name not in _GIVEN and _is_plain(p.default)
        },
        _SOURCE,
        seeded="seed" in takes,
        # Nobody knows whether it would be right on a part of a parameter.
        shards=False,
        code=own_code([build]),
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
