"""What classifiers of images have in common."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saiopt.lab.task import Batch
from saiopt.lab.tasks.seeded import SeededModel


class Classifier(SeededModel):
    """Name the class of an image; where the images come from is left open.

    Args:
        architecture: Builds a model, its weights drawn from torch's generator.
        fingerprint: Hash of the data.
    """

    def __init__(self, architecture: Callable[[], nn.Module], fingerprint: str) -> None:
        super().__init__(architecture)
        self.fingerprint = fingerprint

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the labels.

        Args:
            model: From :meth:`build_model`.
            batch: ``images`` and ``labels``.

        Returns:
            A 0-d tensor in nats.
        """
        return cross_entropy(self._logits(model, batch["images"]), batch["labels"])

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(pixel_values=images).logits
