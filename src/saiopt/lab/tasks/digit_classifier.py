"""Any image classifier on scikit-learn's digits."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from saiopt.lab.data.digits import read_digits, shuffled_rows
from saiopt.lab.task import Batch
from saiopt.lab.tasks.classifier import Classifier


class DigitClassifier(Classifier):
    """Name the digit in an image of 8x8 pixels.

    Args:
        architecture: Builds a model of ten classes for one channel, its weights drawn
            from torch's generator.
    """

    def __init__(self, architecture: Callable[[], nn.Module]) -> None:
        self._digits = read_digits()
        super().__init__(architecture, self._digits.fingerprint)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Take images in a new random order every epoch; an epoch drops its rest.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of images.

        Returns:
            ``images``, shape (size, 1, 8, 8), float32 in [-1, 1], and ``labels``,
            shape (size,), int64.

        Raises:
            ValueError: If there are fewer images than ``size``.
        """
        digits = self._digits
        rows = shuffled_rows(len(digits.labels), size, seed, step)
        return {"images": digits.images[rows], "labels": digits.labels[rows]}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy and loss on the held-out images.

        Args:
            model: In eval mode.

        Returns:
            ``accuracy`` in [0, 1] and ``loss`` in nats.
        """
        device = next(model.parameters()).device
        labels = self._digits.held_out_labels.to(device)
        images = self._digits.held_out_images.to(device)
        logits = self._logits(model, images)
        accuracy = (logits.argmax(dim=1) == labels).double().mean()
        return {
            "accuracy": accuracy.item(),
            "loss": cross_entropy(logits, labels).item(),
        }
