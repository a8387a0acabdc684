"""Any image classifier on scikit-learn's digits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saiopt.lab.digits import read_digits, shuffled_rows
from saiopt.lab.task import Batch


class DigitClassifier:
    """Name the digit in an image of 8x8 pixels.

    Args:
        architecture: Builds a model of ten classes for one channel, its weights drawn
            from torch's generator.
    """

    def __init__(self, architecture: Callable[[], nn.Module]) -> None:
        self._architecture = architecture
        self._digits = read_digits()
        self.fingerprint = self._digits.fingerprint

    def build_model(self, seed: int) -> nn.Module:
        """Build the architecture.

        Args:
            seed: Of the initial weights.

        Returns:
            The model on the CPU.
        """
        torch.manual_seed(seed)
        return self._architecture()

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

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the labels.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor in nats.
        """
        logits = model(pixel_values=batch["images"]).logits
        return cross_entropy(logits, batch["labels"])

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
        logits = model(pixel_values=images).logits
        accuracy = (logits.argmax(dim=1) == labels).double().mean()
        return {
            "accuracy": accuracy.item(),
            "loss": cross_entropy(logits, labels).item(),
        }
