from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from sklearn.datasets import load_digits

from saiopt.lab.noise.parity import load_images, split


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_published(
    folder: Path, pixels: np.ndarray, labels: list[int], image: str
) -> None:
    """Parquet files as the hub has them: encoded images and class labels."""
    features = Features({image: Image(), "label": ClassLabel(num_classes=10)})
    rows = {image: list(pixels), "label": labels}
    Dataset.from_dict(rows, features=features).to_parquet(
        str(folder / "train-00000-of-00001.parquet")
    )


def undo(images: torch.Tensor, like: np.ndarray) -> np.ndarray:
    return (images * like.std() + like.mean()).numpy()


def test_digits_are_even_or_odd() -> None:
    images = load_images("digits")
    digits = load_digits().target
    assert (images.labels.numpy() == np.where(digits % 2 == 0, 1, -1)).all()
    assert images.images.shape == (1797, 1, 8, 8)
    assert images.images.mean().item() == pytest.approx(0, abs=1e-12)
    assert images.images.square().mean().item() == pytest.approx(1)


def test_mnist_is_read_from_files_of_the_published_form(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    write_published(tmp_path, pixels, [0, 1, 2, 3, 8, 9], "image")
    images = load_images("mnist", tmp_path)
    assert images.labels.tolist() == [1, -1, 1, -1, 1, -1]
    assert images.images.shape == (6, 1, 28, 28)
    assert undo(images.images[:, 0], pixels) == pytest.approx(pixels, abs=1e-9)


def test_cifar10_is_animals_against_vehicles(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    write_published(tmp_path, pixels, list(range(10)), "img")
    images = load_images("cifar10", tmp_path)
    # airplane automobile bird cat deer dog frog horse ship truck
    assert images.labels.tolist() == [-1, -1, 1, 1, 1, 1, 1, 1, -1, -1]
    assert images.images.shape == (10, 3, 32, 32)
    expected = pixels.transpose(0, 3, 1, 2)
    assert undo(images.images, pixels) == pytest.approx(expected, abs=1e-9)


def test_training_and_held_out_images_are_apart_and_depend_on_the_seed() -> None:
    images = load_images("digits")
    inside, outside = split(images, 3, 500)
    assert sorted([*inside.tolist(), *outside.tolist()]) == list(range(1797))
    assert len(outside) == 500
    assert not torch.equal(inside, split(images, 4, 500)[0])


def test_unknown_data_are_refused() -> None:
    with pytest.raises(ValueError, match="data must be one of digits, mnist, cifar10"):
        load_images("imagenet")
