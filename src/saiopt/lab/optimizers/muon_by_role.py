"""Muon for what SGD-SaI steps orthogonally, factored scales or AdamW for the rest.

The controls of the rule ``"orthogonal"``: the same parameters get an orthogonal step,
as torch's Muon takes it.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim._muon import EPS

from saiopt.lab.optimizers.by_role import multiply_rest
from saiopt.lab.optimizers.stepping import Stepping
from saiopt.optimizer import SGDSaI, orthogonal_groups
from saiopt.optimizer.roles import ROLES
from saiopt.scaling.orthogonal import UPDATE_RMS, newton_schulz

Group = dict[str, Any]


class MuonWithFactored(Stepping, SGDSaI):
    """Step some groups with Muon and the others with SGD-SaI.

    Muon's state is SGD-SaI's momentum, so that a checkpoint is one of SGD-SaI: its
    float64 sums keep their dtype, also in the middle of a calibration.

    Args:
        groups: For SGD-SaI; those with ``by_muon`` are stepped by Muon, with the
            group's momentum.
        lr: η of both parts.
        momentum: μ of the groups that have none of their own.
    """

    def __init__(self, groups: Sequence[Group], lr: float, momentum: float) -> None:
        super().__init__(list(groups), lr=lr, momentum=momentum)

    def _update(self) -> None:
        chosen = [group for group in self.param_groups if group["by_muon"]]
        with _hidden_gradients(chosen):
            SGDSaI.step(self)
        for group in chosen:
            step_by_muon(group, self.state)


class AdamWByRole(Stepping):
    """Step groups with AdamW at rates of their own, or with Muon.

    A group's ``lr_multiplier`` multiplies the step but not the decay, whatever the
    learning rate is set to.

    Args:
        groups: With ``by_muon``, ``lr_multiplier`` and ``weight_decay``.
        lr: η of both parts.
        momentum: μ of Muon.
        betas: β₁ and β₂ of AdamW.
        eps: ε of AdamW.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        chosen = [{**g, "momentum": momentum} for g in groups if g["by_muon"]]
        others = [group for group in groups if not group["by_muon"]]
        self._adamw = AdamW(others, lr=lr, betas=betas, eps=eps) if others else None
        rest = self._adamw.param_groups if self._adamw else []
        super().__init__([*chosen, *_with_names(rest)], {"lr": lr})

    def _update(self) -> None:
        for group in self.param_groups:
            if group["by_muon"]:
                _allocate(group, self.state)
                step_by_muon(group, self.state)
        if self._adamw is None:
            return
        # Loading a state_dict replaces these objects, so that they are shared here.
        rest = [group for group in self.param_groups if not group["by_muon"]]
        self._adamw.param_groups, self._adamw.state = rest, self.state
        with _multiplied_rates(rest):
            self._adamw.step()


def muon_factored(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    momentum_of_rest: float,
    rest: float = 1.0,
) -> Optimizer:
    """Build Muon for hidden matrices and factored scales for all others.

    Roles, multipliers and decay are those of SGD-SaI's groups by role.

    Args:
        model: What is trained.
        lr: η of both parts.
        weight_decay: λ of all parameters but vectors.
        momentum: μ of Muon.
        momentum_of_rest: μ of the others.
        rest: Multiplies the rate of the others, beside their roles' own.

    Returns:
        The optimizer.

    Raises:
        ValueError: If there is no hidden matrix.
    """
    groups = _groups(model, weight_decay, {}, "muon-factored")
    multiply_rest(groups, rest)
    # A rule that needs no gradient: SGD-SaI never sees those of these groups.
    own = {"scaling": "none", "momentum": momentum}
    chosen = [{**group, **own} if group["by_muon"] else group for group in groups]
    return MuonWithFactored(chosen, lr, momentum_of_rest)


def muon_adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    embedding: float,
    head: float,
    vector: float,
    rest: float = 1.0,
) -> Optimizer:
    """Build Muon for hidden matrices and AdamW with a rate by role for all others.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ of all parameters but vectors; the decay per step is η·λ
            whatever the multiplier.
        momentum: μ of Muon.
        betas: β₁ and β₂ of AdamW.
        eps: ε of AdamW.
        embedding: Multiplier of η for embeddings, tied ones too.
        head: The same for output layers.
        vector: The same for vectors.
        rest: Multiplies these three and the rate of what has no role.

    Returns:
        The optimizer.

    Raises:
        ValueError: If there is no hidden matrix.
    """
    rates = {"tied": embedding, "embedding": embedding, "head": head, "vector": vector}
    groups = _groups(model, weight_decay, rates, "muon-adamw")
    multiply_rest(groups, rest)
    return AdamWByRole(groups, lr, momentum, betas, eps)


def adamw_by_role(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
    embedding: float,
) -> Optimizer:
    """Build AdamW with a rate of its own for embeddings.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ of all parameters but vectors; the decay per step is η·λ
            whatever the multiplier.
        betas: β₁ and β₂.
        eps: ε.
        embedding: Multiplier of η for embeddings, tied ones too.

    Returns:
        The optimizer.
    """
    rates = {role: {"lr_multiplier": 1.0} for role in ROLES}
    rates |= {role: {"lr_multiplier": embedding} for role in ("tied", "embedding")}
    found = orthogonal_groups(model, weight_decay, roles=rates)
    groups = [{**group, "by_muon": False} for group in found]
    return AdamWByRole(groups, lr, 0.0, betas, eps)


def step_by_muon(group: Group, states: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
    """Step the parameters of a group that have gradients as torch's Muon does.

    It deviates in precision: torch's Newton-Schulz runs in bfloat16 everywhere, which
    CPUs without such instructions emulate at a hundredth of their speed, and this one
    in float32 on CPUs.

    Args:
        group: With ``lr``, ``lr_multiplier``, ``weight_decay``, ``momentum`` and
            ``stacked``. Parameters are flattened to rows × columns, stacked ones
            matrix by matrix.
        states: State by parameter, with its ``momentum_buffer``.
    """
    lr, momentum = group["lr"] * group["lr_multiplier"], group["momentum"]
    decay = 1 - group["lr"] * group["weight_decay"]
    # Matrices of one shape are orthogonalised together.
    together: defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor]]]
    together = defaultdict(list)
    for p in group["params"]:
        if p.grad is None:
            continue
        shape = _matrices(p, group.get("stacked", False))
        buffer = states[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        ahead = p.grad.lerp(buffer, momentum).reshape(shape)
        together[tuple(ahead.shape[1:])] += zip(p.view(shape), ahead, strict=True)
    for shape, pairs in together.items():
        stack = torch.stack([ahead for _, ahead in pairs])
        stack /= torch.linalg.matrix_norm(stack, keepdim=True).clamp_(min=EPS)
        if stack.is_cuda and torch.cuda.is_bf16_supported():
            stack = stack.bfloat16()
        steps = newton_schulz(stack, UPDATE_RMS * math.sqrt(max(shape)))
        for (param, _), step in zip(pairs, steps, strict=True):
            param.mul_(decay).sub_(step, alpha=lr)


def _groups(
    model: nn.Module, weight_decay: float, rates: Mapping[str, float], name: str
) -> list[Group]:
    roles = {role: {"lr_multiplier": rate} for role, rate in rates.items()}
    found = orthogonal_groups(model, weight_decay, roles=roles)
    groups = [{**g, "by_muon": g["scaling"] == "orthogonal"} for g in found]
    if not any(group["by_muon"] for group in groups):
        raise ValueError(f"model must have hidden matrices for {name}, got none")
    return groups


def _matrices(tensor: Tensor, is_stacked: bool) -> tuple[int, int, int]:
    """Return the shape of a parameter as a stack of matrices."""
    shape = tuple(tensor.shape) if is_stacked else (1, *tensor.shape)
    return shape[0], shape[1], -1


def _allocate(group: Group, states: dict[Tensor, dict[str, Tensor]]) -> None:
    for p in group["params"]:
        if p.grad is not None and not states[p]:
            states[p]["momentum_buffer"] = torch.zeros_like(p)


def _with_names(groups: Sequence[Group]) -> list[Group]:
    """Return groups of an optimizer as one is built from."""
    return [
        {
            **group,
            "params": list(zip(group["param_names"], group["params"], strict=True)),
        }
        for group in groups
    ]


@contextlib.contextmanager
def _hidden_gradients(groups: Sequence[Group]) -> Iterator[None]:
    """Take the gradients of some groups away for a while."""
    params = [p for group in groups for p in group["params"]]
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad


@contextlib.contextmanager
def _multiplied_rates(groups: Sequence[Group]) -> Iterator[None]:
    """Multiply the rates of groups for a while, without their decay per step."""
    given = [(group["lr"], group["weight_decay"]) for group in groups]
    for group in groups:
        group["lr"] *= group["lr_multiplier"]
        group["weight_decay"] /= group["lr_multiplier"]
    try:
        yield
    finally:
        for group, (lr, decay) in zip(groups, given, strict=True):
            group["lr"], group["weight_decay"] = lr, decay
