"""The speed of memory, measured over the tensors that the optimizers step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .clock import seconds

# So small that a weight of the benchmark never changes by it.
_ALPHA = 1e-30


@torch.no_grad()
def bandwidth(params: Sequence[nn.Parameter], device: torch.device) -> float:
    """Measure bytes per second of θ ← θ + αg in place: two reads and a write.

    It writes what it has read, as every optimizer does, so that a CPU need not fetch
    lines that it is about to overwrite.

    Args:
        params: parameters with gradients; they keep their values.
        device: of the parameters.

    Returns:
        Bytes per second.
    """
    grads = [p.grad for p in params if p.grad is not None]
    moved = sum(p.numel() * (2 * p.element_size()) for p in params)
    moved += sum(g.numel() * g.element_size() for g in grads)
    return moved / seconds(lambda: _axpy(params, grads), device)


def _axpy(params: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> None:
    if params[0].is_cuda:
        torch._foreach_add_(list(params), list(grads), alpha=_ALPHA)
        return
    for param, grad in zip(params, grads, strict=True):
        param.add_(grad, alpha=_ALPHA)
