"""Images with labels ±1: parity of digits, and vehicles against animals."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saiopt.choices import require_known
from saiopt.lab.atomic import full_disk
from saiopt.lab.draws import generator

_CIFAR_VEHICLES = (0, 1, 8, 9)  # airplane, automobile, ship, truck


@dataclasses.dataclass(frozen=True)
class Images:
    """A binary task.

    Args:
        images: Shape (count, C, H, W), float64, mean 0 and mean square 1 over all.
        labels: ±1, shape (count,), float64.
        fingerprint: Hash of both.
    """

    images: Tensor
    labels: Tensor
    fingerprint: str


def load_images(name: str, source: Path | None = None) -> Images:
    """Load a task.

    Args:
        name: ``digits`` (scikit-learn's, 8x8) or ``mnist``: even +1, odd -1; or
            ``cifar10``: animals +1, vehicles -1.
        source: Folder of parquet files in the published form, instead of the hub's.

    Returns:
        The images.

    Raises:
        ValueError: If the name is unknown, or there is no such folder.
    """
    require_known("data", name, LOADERS)
    if source is not None and not source.is_dir():
        raise ValueError(f"source must be a folder that exists, got {source}")
    pixels, labels = LOADERS[name](source)
    values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float64))
    values = (values - values.mean()) / values.std(correction=0)
    signs = torch.from_numpy(labels.astype(np.float64))
    digest = hashlib.sha256(values.numpy().tobytes() + labels.tobytes())
    return Images(values, signs, digest.hexdigest()[:16])


def split(images: Images, seed: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Draw a seed's training points and held-out points.

    Args:
        images: The task.
        seed: Of the draw.
        held_out: Number of points held out.

    Returns:
        Indices to train on, of which a training set of P takes the first P, and the
        others.
    """
    order = torch.randperm(len(images.labels), generator=generator(seed, 0))
    return order[:-held_out], order[-held_out:]


def _digits(source: Path | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    return pixels.reshape(-1, 1, 8, 8), _parity(digits)


def _mnist(source: Path | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    pixels, digits = _published("ylecun/mnist", source, "image", "label")
    return pixels[:, None], _parity(digits)


def _cifar10(source: Path | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    pixels, classes = _published("uoft-cs/cifar10", source, "img", "label")
    labels = np.where(np.isin(classes, _CIFAR_VEHICLES), -1, 1)
    return pixels.transpose(0, 3, 1, 2), labels


def _parity(digits: NDArray[np.int64]) -> NDArray[np.int64]:
    return 1 - 2 * (digits % 2)


def _published(
    name: str, source: Path | None, image: str, label: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name if source is None else str(source), split="train")
    except Exception as error:  # the hub's client raises whatever its parts raise
        if full_disk(error) is not None:
            raise
        raise FileNotFoundError(
            f"source must be a folder with the parquet files of {name}, which must be "
            f"in reach on the hub otherwise, got {source or 'none'} "
            f"({type(error).__name__})"
        ) from error
    columns = rows.with_format("numpy")[:]
    return np.stack(columns[image]), np.asarray(columns[label])


LOADERS: dict[
    str, Callable[[Path | None], tuple[NDArray[np.float64], NDArray[np.int64]]]
] = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}
