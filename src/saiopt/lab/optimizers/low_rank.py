"""Optimizers for LoRA's factors: scaled gradient descent, scaled AdamW, B alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.lab.optimizers.stepping import Stepping

Pair = tuple[Tensor, Tensor]


class ScaledGD(Stepping):
    """Gradient descent on W₀ + BA that moves the product at a rate of its own.

        A ← A - η (BᵀB + δI)⁻¹ ∇A
        B ← B - η ∇B (AAᵀ + δI)⁻¹
        then θ ← (1 - ηλ) θ for both

    Both inverses are of matrices of the rank's size, taken before either factor moves.
    Convolutions count as matrices of their output channels or ranks.

    Args:
        pairs: A of shape (r, in, ...) and B of shape (out, r, ...).
        lr: η.
        weight_decay: λ.
        delta: δ.

    References:
        Zhang and Pilanci (2024), "Riemannian Preconditioned LoRA for Fine-Tuning
        Foundation Models", arXiv 2402.02347.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        lr: float,
        weight_decay: float = 0.0,
        delta: float = 1e-6,
        **options: float | tuple[float, float],
    ) -> None:
        factors = [factor for pair in pairs for factor in pair]
        defaults = {"lr": lr, "weight_decay": weight_decay, "delta": delta, **options}
        super().__init__(factors, defaults)

    def _update(self) -> None:
        for group in self.param_groups:
            factors = group["params"]
            for a, b in zip(factors[::2], factors[1::2], strict=True):
                if a.grad is None or b.grad is None:
                    continue
                directions = precondition(a, b, (a.grad, b.grad), group["delta"])
                for factor, direction in zip((a, b), directions, strict=True):
                    self._move(factor, direction, group)
                    factor.mul_(1 - group["lr"] * group["weight_decay"])

    def _move(self, factor: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        factor.add_(direction, alpha=-group["lr"])


class ScaledAdamW(ScaledGD):
    """AdamW whose moments are those of the gradients that ScaledGD would follow.

        m = β₁ m + (1-β₁) d ;  v = β₂ v + (1-β₂) d²
        θ ← θ - η m̂ / (√v̂ + ε) ;  θ ← (1 - ηλ) θ

    It deviates from torch's AdamW, which decays before the step.

    Args:
        pairs: As in :class:`ScaledGD`.
        lr: η.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.
        delta: δ.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        lr: float,
        betas: tuple[float, float] = (0.7, 0.8),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        delta: float = 1e-6,
    ) -> None:
        super().__init__(pairs, lr, weight_decay, delta, betas=betas, eps=eps)

    def _move(self, factor: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        state = self.state[factor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(factor)
            state["exp_avg_sq"] = torch.zeros_like(factor)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step = state["step"].item()
        state["exp_avg"].lerp_(direction, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(direction, direction, value=1 - beta2)
        size = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2**step))
        rate = group["lr"] / (1 - beta1**step)
        factor.addcdiv_(state["exp_avg"], size.add_(group["eps"]), value=-rate)


def precondition(a: Tensor, b: Tensor, grads: Pair, delta: float) -> Pair:
    """Return (BᵀB + δI)⁻¹ ∇A and ∇B (AAᵀ + δI)⁻¹.

    Args:
        a: A, shape (r, in, ...).
        b: B, shape (out, r, ...).
        grads: ∇A and ∇B.
        delta: δ.

    Returns:
        Directions of the shapes and dtypes of A and B, computed in float32 or better.
    """
    grad_a, grad_b = _matrix(grads[0]), _matrix(grads[1])
    matrix_a, matrix_b = _matrix(a), _matrix(b)
    ridge = delta * torch.eye(len(matrix_a), dtype=matrix_a.dtype, device=a.device)
    direction_a = torch.linalg.solve(matrix_b.T @ matrix_b + ridge, grad_a)
    direction_b = torch.linalg.solve(matrix_a @ matrix_a.T + ridge, grad_b, left=False)
    return direction_a.to(a.dtype).view_as(a), direction_b.to(b.dtype).view_as(b)


def lora_pairs(model: nn.Module) -> list[Pair]:
    """Find LoRA's factors by the names that peft gives them.

    Args:
        model: With adapters.

    Returns:
        A and B of every adapter.

    Raises:
        ValueError: If there are none, or something else is trained too.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pairs = {
        name: name.replace(".lora_A.", ".lora_B.")
        for name in named
        if ".lora_A." in name
    }
    if not pairs:
        raise ValueError(
            "optimizer must be one for whole models where the recipe has no LoRA "
            "adapters, got one for adapters"
        )
    others = set(named) - set(pairs) - set(pairs.values())
    if others:
        raise ValueError(
            "model must train LoRA adapters alone with an optimizer for them, got "
            f"{min(others)}"
        )
    return [(named[a], named[b]) for a, b in pairs.items()]


def scaled_gd(
    model: nn.Module, lr: float, weight_decay: float, *, delta: float
) -> Optimizer:
    """Build scaled gradient descent on a model's LoRA adapters.

    Args:
        model: With adapters from peft.
        lr: η.
        weight_decay: λ.
        delta: δ.

    Returns:
        The optimizer.
    """
    return ScaledGD(lora_pairs(model), lr, weight_decay, delta)


def scaled_adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
    delta: float,
) -> Optimizer:
    """Build scaled AdamW on a model's LoRA adapters.

    Args:
        model: With adapters from peft.
        lr: η.
        weight_decay: λ.
        betas: β₁ and β₂.
        eps: ε.
        delta: δ.

    Returns:
        The optimizer.
    """
    return ScaledAdamW(lora_pairs(model), lr, betas, eps, weight_decay, delta)


def without_a(build: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Return what builds an optimizer that never moves the adapters' A.

    A still gets its gradient and counts for clipping: it is as if the optimizer had
    calibrated it at its first gradient, which is zero because B is.

    Args:
        build: Of an optimizer for whole models.

    Returns:
        A build of the same settings, for models with adapters from peft.
    """

    def built(
        model: nn.Module, lr: float, weight_decay: float, **settings: object
    ) -> Optimizer:
        frozen = [a for a, _ in lora_pairs(model)]
        for factor in frozen:
            factor.requires_grad_(False)
        optimizer = build(model, lr, weight_decay, **settings)
        for factor in frozen:
            factor.requires_grad_()
        return optimizer

    return built


def _matrix(tensor: Tensor | None) -> Tensor:
    """Return a tensor as a matrix of at least single precision."""
    assert tensor is not None
    flat = tensor.flatten(1)
    return flat if flat.dtype == torch.float64 else flat.float()
