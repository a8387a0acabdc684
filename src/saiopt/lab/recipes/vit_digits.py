"""Vision transformer on scikit-learn's handwritten digits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.digit_classifier import DigitClassifier


@dataclasses.dataclass(frozen=True)
class VitDigits:
    """A small ViT as transformers builds it, on images of 8x8 pixels.

    Args:
        hidden_size: Width; the MLP has four times as much.
        num_layers: Transformer blocks.
        num_heads: Attention heads.
        patch_size: Pixels along a patch's side; divides 8.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    patch_size: int = 2

    def __post_init__(self) -> None:
        if self.patch_size not in {1, 2, 4, 8}:
            raise ValueError(
                f"task.patch_size must be 1, 2, 4 or 8, got {self.patch_size}"
            )
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                "task.hidden_size must be a multiple of task.num_heads, got "
                f"{self.hidden_size} and {self.num_heads}"
            )

    def load(self) -> DigitClassifier:
        """Read the digits that come with scikit-learn.

        Returns:
            The task.
        """
        from saiopt.lab.tasks.digit_classifier import DigitClassifier
        from saiopt.lab.tasks.image_models import vision_transformer

        return DigitClassifier(
            lambda: vision_transformer(
                classes=10,
                side=8,
                patch=self.patch_size,
                width=self.hidden_size,
                layers=self.num_layers,
                heads=self.num_heads,
            )
        )


def vit_digits() -> Recipe:
    """Return the recipe: 0.2 M parameters, 48 epochs of 1198 images.

    Returns:
        The recipe with the learning rates of ``studies/learning_rates``.
    """
    return Recipe(
        name="vit-digits",
        description="ViT (0.2 M) on scikit-learn's digits",
        task=VitDigits(),
        metric=Metric("accuracy", "validation accuracy", True),
        steps=1800,
        batch_size=32,
        eval_every=100,
        checkpoint_every=300,
        schedule="cosine",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai": 2e-2,
            "sgdsai-sqrt-numel": 1e-2,
            "adamw": 5e-4,
            "sgd": 1e-1,
            "sgdm-decoupled": 5e-1,
            "sgdsai-gsnr-max": 5e-1,
            "sgdsai-shuffled": 5e-3,
            "adam": 5e-4,
            "adam-mini": 1e-4,
            "adafactor": 5e-3,
            "lion": 5e-5,
            "muon": 5e-4,
            "prodigy": 5e-2,
            "schedule-free-adamw": 2e-4,
            "sgdsai-orthogonal": 1e-3,
            "sgdsai-factored": 2e-4,
            "muon-factored": 5e-4,
            "muon-adamw": 5e-4,
        },
    )
