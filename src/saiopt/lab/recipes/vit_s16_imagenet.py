"""ViT-S/16 on ImageNet-1K, at the paper's size."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.image_classifier import ImageClassifier

_CENTRE = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class VitS16ImageNet:
    """ViT-S/16 of 22,050,664 parameters, for images of 224x224 pixels.

    Args:
        data: The data set's name on the hub, or a folder of its files or of images in
            ``train/<class>/`` and ``validation/<class>/``.
        classes: Number of classes.
    """

    data: str = "ILSVRC/imagenet-1k"
    classes: int = 1000

    def load(self) -> ImageClassifier:
        """Open the data set.

        Returns:
            The task.
        """
        from saiopt.lab.data.published_data import read_table
        from saiopt.lab.tasks.image_classifier import ImageClassifier, LargeImages
        from saiopt.lab.tasks.image_models import vision_transformer

        tables = [
            read_table(self.data, split, ("image", "label"))
            for split in ("train", "validation")
        ]
        return ImageClassifier(
            lambda: vision_transformer(
                self.classes, side=224, patch=16, width=384, layers=12, heads=6
            ),
            LargeImages(tables[0], tables[1], side=224),
            _CENTRE,
            _CENTRE,
            "-".join(table._fingerprint for table in tables),
        )


def vit_s16_imagenet() -> Recipe:
    """Return the recipe: 90 epochs of 1251 steps.

    Learning rates are the best of the paper's grid. One decay per step serves all
    optimizers: 1e-4, that of the paper's best cell of SGD-SaI and of SGD (AdamW's best
    cell decays by 1e-5). The paper is silent on the rest: batch 1024, warm-up of 10,000
    steps, cosine and clipping at norm 1 are those of Beyer, Zhai and Kolesnikov 2022
    for 90 epochs; random parts and flips without their RandAugment and mixup.

    Returns:
        The recipe.
    """
    return Recipe(
        name="vit-s16-imagenet",
        description="ViT-S/16 (22 M) on ImageNet-1K",
        task=VitS16ImageNet(),
        metric=Metric("accuracy", "validation accuracy", True),
        steps=112_590,
        batch_size=1024,
        eval_every=1251,
        checkpoint_every=1251,
        schedule="cosine",
        warmup_fraction=0.0889,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={"sgdsai": 1e-2, "adamw": 1e-3, "sgd": 1e-1},
        micro_batches=4,
        loaders=8,
        size="published",
    )
