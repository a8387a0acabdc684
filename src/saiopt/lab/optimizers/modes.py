"""Optimizers that evaluate other weights than they train."""

from typing import Protocol, runtime_checkable

from torch.optim import Optimizer


@runtime_checkable
class Averaging(Protocol):
    """An optimizer that swaps its weights for their average and back."""

    def train(self) -> None:
        """Put the weights in place at which gradients are taken."""
        ...

    def eval(self) -> None:
        """Put the average in place."""
        ...


def set_mode(optimizer: Optimizer, *, training: bool) -> None:
    """Put those weights in place that training or evaluation needs.

    Args:
        optimizer: Unchanged unless it keeps an average, as schedule-free ones do.
        training: False to evaluate.
    """
    if isinstance(optimizer, Averaging):
        (optimizer.train if training else optimizer.eval)()
