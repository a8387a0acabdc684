"""Models whose initial weights a seed draws."""

from collections.abc import Callable

import torch
from torch import nn


class SeededModel:
    """Build the same model from the same seed; its data and loss are left open.

    Args:
        build: Builds a model, its weights drawn from torch's generator or read.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build

    def build_model(self, seed: int) -> nn.Module:
        """Build the model.

        Args:
            seed: Of the initial weights, unless they come from a checkpoint.

        Returns:
            The model on the CPU.
        """
        torch.manual_seed(seed)
        return self._build()
