"""ResNet-18 on CIFAR-10, at the paper's size."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.image_classifier import ImageClassifier

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)


@dataclasses.dataclass(frozen=True)
class Resnet18Cifar10:
    """ResNet-18 of 11,173,962 parameters, with the 3x3 stem that CIFAR-10 needs.

    Args:
        data: The data set's name on the hub, or a folder of its files.
        image: Name of the column of images.
        label: Name of the column of labels.
    """

    data: str = "uoft-cs/cifar10"
    image: str = "img"
    label: str = "label"

    def load(self) -> ImageClassifier:
        """Read all images into memory: 0.2 GB.

        Returns:
            The task.
        """
        from saiopt.lab.data.published_data import read_table
        from saiopt.lab.tasks.image_classifier import ImageClassifier, SmallImages
        from saiopt.lab.tasks.image_models import small_stem_resnet

        tables = [
            read_table(self.data, split, (self.image, self.label))
            for split in ("train", "test")
        ]
        return ImageClassifier(
            lambda: small_stem_resnet(10, 3, [64, 128, 256, 512], 2),
            SmallImages(tables[0], tables[1], self.image, self.label),
            _MEAN,
            _STD,
            "-".join(table._fingerprint for table in tables),
        )


def resnet18_cifar10() -> Recipe:
    """Return the recipe: 200 epochs of 390 steps, a tenth of the lr every 80 epochs.

    Learning rates are the best of the paper's grid; all its good cells decay by 5e-4
    per step, as here. The paper reports the best epoch on the test images; this reports
    the last. No clipping and no warm-up, of which the paper says nothing.

    Returns:
        The recipe.
    """
    return Recipe(
        name="resnet18-cifar10",
        description="ResNet-18 (11 M) on CIFAR-10",
        task=Resnet18Cifar10(),
        metric=Metric("accuracy", "test accuracy", True),
        steps=78_000,
        batch_size=128,
        eval_every=1950,
        checkpoint_every=1950,
        schedule="step",
        warmup_fraction=0.0,
        clip_norm=0.0,
        decay_per_step=5e-4,
        lrs={"sgdsai": 1e-3, "adamw": 1e-3, "sgd": 1e-2},
        size="published",
    )
