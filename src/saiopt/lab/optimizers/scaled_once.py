"""SGD-SaI and its controls."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.distributed.shards import measure_blocks
from saiopt.lab.draws import generator
from saiopt.optimizer import SGDSaI, decay_groups
from saiopt.optimizer.sgdsai import StateDtype
from saiopt.scaling import gsnr


def sgdsai(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    eps: float,
    scaling: str,
    state_dtype: StateDtype | None = None,
) -> SGDSaI:
    """Build SGD-SaI with one of its scaling rules.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ of matrices.
        momentum: μ.
        eps: ε.
        scaling: Name of the rule.
        state_dtype: Name of the momentum's dtype, None for the parameters'.

    Returns:
        The optimizer.
    """
    return SGDSaI(
        decay_groups(model, weight_decay),
        lr=lr,
        momentum=momentum,
        eps=eps,
        scaling=scaling,
        state_dtype=state_dtype,
    )


def shuffled(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
    eps: float,
    seed: int,
) -> SGDSaI:
    """Build SGD-SaI whose blocks have each other's g-SNR.

    The blocks that calibrate at the same step permute their scales among them, over
    all param groups: the distribution of scales is that of ``gsnr``, their places are
    chance. If this trains as well, g-SNR says nothing about a block.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ of matrices.
        momentum: μ.
        eps: ε.
        seed: Of the permutation.

    Returns:
        The optimizer.
    """
    optimizer = sgdsai(
        model, lr, weight_decay, momentum=momentum, eps=eps, scaling="gsnr"
    )

    def permute(stepping: Optimizer, *_: object) -> None:
        waiting = _waiting(stepping)
        if not waiting:
            return
        moments = measure_blocks(waiting)
        usable = moments.usable.tolist()
        blocks = [p for p, begins in zip(waiting, usable, strict=True) if begins]
        scales = gsnr(moments.select(moments.usable), eps)
        order = torch.randperm(len(blocks), generator=generator(seed, len(blocks)))
        drawn = scales[order].tolist()
        optimizer.assign_scales(dict(zip(blocks, drawn, strict=True)))

    optimizer.register_step_pre_hook(permute)
    return optimizer


def _waiting(optimizer: Optimizer) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [p for p in params if p.grad is not None and _is_unscaled(optimizer, p)]


def _is_unscaled(optimizer: Optimizer, param: Tensor) -> bool:
    entry: dict[str, Any] | None = optimizer.state.get(param)
    return entry is None or entry["scale"].item() == 0
