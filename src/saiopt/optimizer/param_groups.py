"""Which parameters decay, and which options go with their roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .roles import ROLES, RoleOf, parameter_roles, trainable_parameters


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into those that decay and those that do not.

    Biases, the scales and shifts of norms and all other parameters of at most one
    dimension do not decay. Shared parameters appear once.

    Args:
        model: the model.
        weight_decay: λ >= 0 of the parameters that decay.

    Returns:
        Param groups for an optimizer, with `params` and `weight_decay`, no empty ones.

    Raises:
        RuntimeError: FSDP1 flattened several parameters into one.
        ValueError: the model has no parameter that requires a gradient, or one without
            a shape yet, or FSDP1 keeps slices of its parameters, which all have one
            dimension.

    Example:
        >>> groups = decay_groups(nn.Linear(3, 2), weight_decay=0.1)
        >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
        [(1, 0.1), (1, 0.0)]
    """
    trainable = trainable_parameters(model).values()
    return split_by_decay(trainable, weight_decay)


def orthogonal_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    role_of: RoleOf | None = None,
    roles: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Give the hidden matrices orthogonal steps and all others factored scales.

    Each role of :func:`saiopt.parameter_roles` has a group with the options that go
    with it: the rule, a multiplier of the learning rate, and no decay for vectors.

    Args:
        model: the model, perhaps wrapped.
        weight_decay: λ >= 0 of all parameters but the vectors.
        role_of: takes a name and a parameter and returns its role, or None where the
            model's structure shall tell it.
        roles: options by role that take the place of the defaults or stand beside them,
            as `{"embedding": {"lr_multiplier": 4.0, "momentum": 0.95}}`.

    Returns:
        Param groups for :class:`saiopt.SGDSaI`, without empty ones and always in the
        same order: `params` as (name, parameter) pairs, `role`, `scaling`,
        `lr_multiplier`, `weight_decay`, `stacked` for stacked experts, and what `roles`
        adds. As torch asks for, further groups of the optimizer must have names too.

    Raises:
        RuntimeError: see :func:`saiopt.parameter_roles`.
        TypeError: the options of a role are no mapping.
        ValueError: `roles` names a role that does not exist or sets what the roles
            decide, or see :func:`saiopt.parameter_roles`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
        >>> for group in orthogonal_groups(model, weight_decay=0.1):
        ...     names = [name for name, _ in group["params"]]
        ...     print(group["role"], group["scaling"], names)
        embedding factored ['0.weight']
        head factored ['2.weight']
        hidden orthogonal ['1.weight']
        vector factored ['1.bias', '2.bias']
    """
    given = roles or {}
    for role, changed in given.items():
        _check_role(role, changed)
    found = parameter_roles(model, role_of)
    members: dict[str, list[tuple[str, nn.Parameter]]] = {role: [] for role in ROLES}
    for name, param in trainable_parameters(model).items():
        members[found[name]].append((name, param))
    return [
        {
            "params": params,
            "role": role,
            "weight_decay": weight_decay,
            **ROLES[role],
            **given.get(role, {}),
        }
        for role, params in members.items()
        if params
    ]


def split_by_decay(
    params: Iterable[Tensor], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not.

    Args:
        params: those of at most one dimension do not decay.
        weight_decay: λ >= 0 of the others.

    Returns:
        Param groups as those of :func:`decay_groups`.
    """
    decaying, others = [], []
    for param in params:
        (decaying if param.dim() >= 2 else others).append(param)
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _check_role(role: str, changed: object) -> None:
    if role not in ROLES:
        raise ValueError(f"roles must name some of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(changed, Mapping):
        raise TypeError(
            f"roles[{role!r}] must be a mapping of options, got {changed!r}"
        )
    if decided := {"params", "role"} & changed.keys():
        raise ValueError(
            f"roles[{role!r}] must leave params and role alone, got {sorted(decided)}"
        )
