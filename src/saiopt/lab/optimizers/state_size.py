"""Bytes of an optimizer's state."""

import torch
from torch.optim import Optimizer


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
