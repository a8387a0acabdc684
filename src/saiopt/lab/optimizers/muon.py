"""Muon for hidden matrices, AdamW for everything else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from saiopt.lab.optimizers.stepping import Stepping
from saiopt.optimizer import split_by_decay

# Names of output layers in transformers, diffusers and torchvision.
_HEADS = frozenset({"lm_head", "classifier", "score", "head", "fc"})


class MuonWithAdamW(Stepping):
    """Step hidden matrices with Muon and the other parameters with AdamW.

    Muon: m = μ m + (1-μ) g, then θ = (1 - ηλ) θ - 0.2 η √max(rows, columns) · O, where
    O ≈ UVᵀ for μ m + (1-μ) g = UΣVᵀ. The factor gives the update the root mean square
    of AdamW's, so that one learning rate serves both; it deviates from Jordan et al.,
    who tune two.

    Args:
        hidden: Matrices for Muon.
        others: Param groups for AdamW.
        lr: η.
        weight_decay: λ of the hidden matrices.
        momentum: μ of Muon.
        betas: β₁ and β₂ of AdamW.
        eps: ε of AdamW.

    References:
        Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".
        Liu et al. (2025), "Muon is Scalable for LLM Training", arXiv 2502.16982, 2.2.
    """

    def __init__(
        self,
        hidden: list[Tensor],
        others: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        first = torch.optim.Muon(
            hidden,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = [AdamW(others, lr=lr, betas=betas, eps=eps)] if others else []
        self._parts: list[Optimizer] = [first, *rest]
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    def _update(self) -> None:
        # Loading a state_dict replaces these objects, so that they are shared here.
        shares = (self.param_groups[:1], self.param_groups[1:])
        for part, groups in zip(self._parts, shares, strict=False):
            part.param_groups, part.state = groups, self.state
            part.step()


def muon(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """Build Muon for the 2-D parameters that are no embedding and no output layer.

    A query, key and value in one matrix are one matrix here.

    Args:
        model: What is trained.
        lr: η of both parts.
        weight_decay: λ of all parameters of two dimensions or more.
        momentum: μ of Muon.
        betas: β₁ and β₂ of AdamW.
        eps: ε of AdamW.

    Returns:
        The optimizer.

    Raises:
        ValueError: If there is no such matrix.
    """
    hidden = hidden_matrices(model)
    if not hidden:
        raise ValueError("model must have hidden matrices for muon, got none")
    chosen = set(hidden)
    rest = [p for p in model.parameters() if p.requires_grad and p not in chosen]
    others = split_by_decay(rest, weight_decay)
    return MuonWithAdamW(hidden, others, lr, weight_decay, momentum, betas, eps)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Find the matrices between embeddings and output layer.

    Args:
        model: Any module.

    Returns:
        Its trainable 2-D parameters apart from embeddings and heads.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return [
        p
        for name, p in model.named_parameters()
        if p.requires_grad
        and p.dim() == 2
        and p not in embeddings
        and _HEADS.isdisjoint(name.split("."))
    ]
