"""Residual network on scikit-learn's handwritten digits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.digit_classifier import DigitClassifier


@dataclasses.dataclass(frozen=True)
class ResnetDigits:
    """A small ResNet of basic blocks: three stages of 8x8, 4x4 and 2x2 pixels.

    Args:
        width: Channels of the first stage; each later one has twice as many.
        blocks: Residual blocks per stage.

    Raises:
        ValueError: If a size is below 1.
    """

    width: int = 16
    blocks: int = 1

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")

    def load(self) -> DigitClassifier:
        """Read the digits that come with scikit-learn.

        Returns:
            The task.
        """
        from saiopt.lab.tasks.digit_classifier import DigitClassifier
        from saiopt.lab.tasks.image_models import small_stem_resnet

        widths = [self.width, 2 * self.width, 4 * self.width]
        return DigitClassifier(lambda: small_stem_resnet(10, 1, widths, self.blocks))


def resnet_digits() -> Recipe:
    """Return the recipe: 0.078 M parameters, 8 epochs of 1198 images.

    Returns:
        The recipe with the learning rates of ``studies/learning_rates``.
    """
    return Recipe(
        name="resnet-digits",
        description="ResNet (0.08 M) on scikit-learn's digits",
        task=ResnetDigits(),
        metric=Metric("accuracy", "validation accuracy", True),
        steps=300,
        batch_size=32,
        eval_every=50,
        checkpoint_every=100,
        schedule="cosine",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai": 1e-2,
            "sgdsai-sqrt-numel": 5e-2,
            "adamw": 2e-3,
            "sgd": 2e-1,
            "sgdm-decoupled": 2.0,
            "sgdsai-shuffled": 5e-2,
            "adam": 1e-2,
            "sgdsai-orthogonal": 1e-2,
            "sgdsai-factored": 1e-2,
            "muon-factored": 5e-3,
            "muon-adamw": 5e-3,
        },
    )
