"""scikit-learn's handwritten digits and their split, the same for all seeds."""

import dataclasses
import hashlib
from collections.abc import Collection

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from saiopt.lab.draws import generator

_HELD_OUT_SHARE = 1 / 3
_SPLIT_SEED = 0
_HIGHEST = 8  # half of the largest pixel, 16


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images of 8x8 pixels: 1198 for training, 599 held out, each digit in both.

    Args:
        images: For training, shape (n, 1, 8, 8), float32 in [-1, 1].
        labels: Their digits, shape (n,), int64.
        held_out_images: As ``images``.
        held_out_labels: As ``labels``.
        fingerprint: Hash of pixels and digits as scikit-learn has them.
    """

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    fingerprint: str

    def only(self, digits: Collection[int]) -> "Digits":
        """Leave all other digits out.

        Args:
            digits: Which to keep.

        Returns:
            Both parts, in the same order as before.
        """
        wanted = torch.tensor(sorted(digits))
        kept = torch.isin(self.labels, wanted)
        kept_out = torch.isin(self.held_out_labels, wanted)
        return dataclasses.replace(
            self,
            images=self.images[kept],
            labels=self.labels[kept],
            held_out_images=self.held_out_images[kept_out],
            held_out_labels=self.held_out_labels[kept_out],
        )


def read_digits() -> Digits:
    """Read the digits that come with scikit-learn.

    Returns:
        All ten of them.
    """
    pixels, digits = load_digits(return_X_y=True)
    fingerprint = hashlib.sha256(pixels.tobytes() + digits.tobytes()).hexdigest()
    rows = train_test_split(
        range(len(digits)),
        test_size=_HELD_OUT_SHARE,
        random_state=_SPLIT_SEED,
        stratify=digits,
    )
    images = torch.from_numpy(pixels).float().div(_HIGHEST).sub(1).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(digits).long()
    (train, held_out), (known, unknown) = (
        [every[part] for part in rows] for every in (images, labels)
    )
    return Digits(train, known, held_out, unknown, fingerprint[:16])


def shuffled_rows(count: int, size: int, seed: int, step: int) -> Tensor:
    """Choose a step's rows in a new random order every epoch; an epoch drops its rest.

    Args:
        count: Rows of the training data.
        size: Rows of a batch.
        seed: Of the run.
        step: Counted from 0.

    Returns:
        Row numbers, shape (size,), int64.

    Raises:
        ValueError: If there are fewer rows than ``size``.
    """
    steps_per_epoch = count // size
    if steps_per_epoch == 0:
        raise ValueError(f"batch_size must be at most {count}, got {size}")
    epoch, position = divmod(step, steps_per_epoch)
    order = torch.randperm(count, generator=generator(seed, epoch))
    return order[position * size : (position + 1) * size]
