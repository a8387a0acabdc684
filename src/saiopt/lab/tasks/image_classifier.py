"""Image classifiers on published data sets."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saiopt.lab.data.augmentation import centre_crop, crop_and_flip, random_resized_crop
from saiopt.lab.data.digits import shuffled_rows
from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.tasks.classifier import Classifier

if TYPE_CHECKING:
    from datasets import Dataset

_EVALUATION_BATCH = 100
_AUGMENTATION_KEY = 1


class Images(Protocol):
    """Labelled images of one size, uint8."""

    def __len__(self) -> int:
        """Return the number of training images."""
        ...

    def training(self, rows: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return augmented images and labels; ``key`` decides the augmentation."""
        ...

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield held-out images and labels in batches."""
        ...


class SmallImages:
    """Images that fit in memory, shifted by up to 4 pixels and mirrored.

    Args:
        train: Table of images and labels.
        held_out: The same.
        image: Name of the column of images.
        label: Name of the column of labels.
    """

    def __init__(
        self, train: "Dataset", held_out: "Dataset", image: str, label: str
    ) -> None:
        self._images, self._labels = _in_memory(train, image, label)
        self._held_out = _in_memory(held_out, image, label)

    def __len__(self) -> int:
        """Return the number of training images."""
        return len(self._labels)

    def training(self, rows: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return shifted and mirrored images and their labels.

        Args:
            rows: Which images.
            key: Decides shifts and flips.

        Returns:
            Shapes (n, 3, side, side), uint8, and (n,), int64.
        """
        images = crop_and_flip(self._images[rows], 4, generator(*key))
        return images, self._labels[rows]

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield held-out images and labels."""
        return zip(
            *(part.split(_EVALUATION_BATCH) for part in self._held_out), strict=True
        )


class LargeImages:
    """Images that are decoded when they are needed, by several threads.

    Args:
        train: Table of images and labels.
        held_out: The same.
        side: Pixels of a model's input.
    """

    def __init__(self, train: "Dataset", held_out: "Dataset", side: int) -> None:
        self._train, self._held_out, self._side = train, held_out, side

    def __len__(self) -> int:
        """Return the number of training images."""
        return len(self._train)

    def training(self, rows: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return random parts of images, resized, and their labels.

        Args:
            rows: Which images.
            key: Decides the parts and flips.

        Returns:
            Shapes (n, 3, side, side), uint8, and (n,), int64.
        """

        def decode(row: int) -> tuple[Tensor, int]:
            example: dict[str, Any] = self._train[row]
            random = generator(*key, row)
            part = random_resized_crop(example["image"], self._side, random)
            return part, example["label"]

        return _decoded(decode, rows.tolist())

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the middles of held-out images, resized, and their labels."""

        def decode(row: int) -> tuple[Tensor, int]:
            example: dict[str, Any] = self._held_out[row]
            return centre_crop(example["image"], self._side), example["label"]

        for rows in torch.arange(len(self._held_out)).split(_EVALUATION_BATCH):
            yield _decoded(decode, rows.tolist())


class ImageClassifier(Classifier):
    """Name the class of an image.

    Args:
        architecture: Builds a model, its weights drawn from torch's generator.
        images: What it learns.
        mean: Of each channel over the data set, in [0, 1].
        std: Standard deviation of each channel.
        fingerprint: Hash of the data.
    """

    def __init__(
        self,
        architecture: Callable[[], nn.Module],
        images: Images,
        mean: Iterable[float],
        std: Iterable[float],
        fingerprint: str,
    ) -> None:
        super().__init__(architecture, fingerprint)
        self._images = images
        self._mean, self._std = (
            torch.tensor(list(values)).view(3, 1, 1) for values in (mean, std)
        )

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Take images in a new random order every epoch, augmented anew.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of images.

        Returns:
            ``images``, shape (size, 3, side, side), uint8, and ``labels``, shape
            (size,), int64.

        Raises:
            ValueError: If there are fewer images than ``size``.
        """
        rows = shuffled_rows(len(self._images), size, seed, step)
        images, labels = self._images.training(rows, (seed, step, _AUGMENTATION_KEY))
        return {"images": images, "labels": labels}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy and loss on the held-out images.

        Args:
            model: In eval mode.

        Returns:
            ``accuracy`` in [0, 1] and ``loss`` in nats.
        """
        device = next(model.parameters()).device
        count, right, loss = 0, 0, 0.0
        for images, labels in self._images.held_out():
            wanted = labels.to(device)
            logits = self._logits(model, images.to(device))
            count += len(labels)
            right += int((logits.argmax(dim=1) == wanted).sum())
            loss += cross_entropy(logits, wanted, reduction="sum").item()
        return {"accuracy": right / count, "loss": loss / count}

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        mean, std = (t.to(images.device) for t in (self._mean, self._std))
        return super()._logits(model, (images.float() / 255 - mean) / std)


def _in_memory(table: "Dataset", image: str, label: str) -> tuple[Tensor, Tensor]:
    pixels = [np.array(picture.convert("RGB")) for picture in table[image]]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(table[label])


def _decoded(
    decode: Callable[[int], tuple[Tensor, int]], rows: list[int]
) -> tuple[Tensor, Tensor]:
    with ThreadPoolExecutor() as pool:
        images, labels = zip(*pool.map(decode, rows), strict=True)
    return torch.stack(images), torch.tensor(labels)
