"""Gradients of a batch that is in memory part by part."""

import contextlib

import torch
from torch import Tensor, nn

from saiopt.lab.task import Batch, Task, Weighted
from saiopt.lab.training.ranks import ALONE, Ranks


def accumulate(
    task: Task,
    model: nn.Module,
    batch: Batch,
    count: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    precision: str = "float32",
) -> Tensor:
    """Add the gradients of a batch to those that the parameters hold.

    Parts count alike, or by their targets where the task is
    :class:`~saiopt.lab.task.Weighted`: the gradient is that of the batch in one piece.

    Args:
        task: Whose loss it is.
        model: Of the task, laid over the processes.
        batch: Of all processes.
        count: Number of parts of each process's share.
        device: Where the model lies.
        ranks: The processes that share the batch.
        precision: Of the forward passes, as :func:`in_precision` takes it.

    Returns:
        A 0-d tensor, whose mean over the processes is the batch's loss.
    """
    split = {n: t.chunk(count) for n, t in ranks.share(batch).items()}
    parts = [
        {name: tensors[i] for name, tensors in split.items()} for i in range(count)
    ]
    # Targets of a process's share, were they shared evenly.
    targets = task.weight(batch) / ranks.count if isinstance(task, Weighted) else 0.0
    losses = []
    for i, part in enumerate(parts):
        on_device = {name: tensor.to(device) for name, tensor in part.items()}
        with ranks.adding_up(model, is_last=i == count - 1):
            with in_precision(precision, device):
                loss = task.loss(model, on_device)
            if isinstance(task, Weighted):
                loss = _weighted(loss, task.weight(part), targets)
            else:
                loss = loss / count
            loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def in_precision(
    precision: str, device: torch.device
) -> contextlib.AbstractContextManager[object]:
    """Let forward passes compute in a precision.

    Args:
        precision: A name of :data:`saiopt.lab.recipe.PRECISIONS`.
        device: Where the model lies.

    Returns:
        A context for the pass and its loss, not for the backward pass.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def _weighted(loss: Tensor, weight: int, total: float) -> Tensor:
    if weight == 0:
        # A mean over nothing is NaN. Processes exchange gradients all the same.
        return loss.nan_to_num() * 0.0
    return loss * (weight / total)
