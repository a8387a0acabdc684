"""Denoising diffusion on scikit-learn's handwritten digits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from saiopt.lab.tasks.digit_diffusion import DigitDiffusion


@dataclasses.dataclass(frozen=True)
class DdpmDigits:
    """A small UNet as diffusers builds it, for images of 8x8 pixels.

    Args:
        width: Channels at full resolution, twice as many at half; a multiple of 8.
        held_out_repeats: Noise levels at which every held-out image is tested.
        samples: Images that are generated for the Fréchet distance.
        sampling_steps: Steps of the sampler per image, up to 1000.

    Raises:
        ValueError: If a size is out of its range.
    """

    packages: ClassVar[tuple[str, ...]] = ("diffusers", "scikit-learn")

    width: int = 16
    held_out_repeats: int = 2
    samples: int = 256
    sampling_steps: int = 20

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if self.width % 8:
            raise ValueError(f"task.width must be a multiple of 8, got {self.width}")
        if self.samples < 2:
            raise ValueError(f"task.samples must be at least 2, got {self.samples}")
        if self.sampling_steps > 1000:
            raise ValueError(
                f"task.sampling_steps must be at most 1000, got {self.sampling_steps}"
            )

    def load(self) -> DigitDiffusion:
        """Read the digits that come with scikit-learn.

        Returns:
            The task.
        """
        return self.task_on(range(10))

    def task_on(self, classes: Collection[int]) -> DigitDiffusion:
        """Return the task on some of the digits.

        The UNet has attention at the lower one of its two resolutions.

        Args:
            classes: The digits that are learnt and generated.

        Returns:
            The task.
        """
        from diffusers import UNet2DModel

        from saiopt.lab.tasks.digit_diffusion import DigitDiffusion

        def unet() -> nn.Module:
            return UNet2DModel(
                sample_size=8,
                in_channels=1,
                out_channels=1,
                block_out_channels=(self.width, 2 * self.width),
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                attention_head_dim=8,
                norm_num_groups=8,
            )

        return DigitDiffusion(
            unet, classes, self.held_out_repeats, self.samples, self.sampling_steps
        )


def ddpm_digits() -> Recipe:
    """Return the recipe: 0.2 M parameters, 11 epochs of 1198 images.

    Returns:
        The recipe with the learning rates of ``studies/learning_rates``.
    """
    return Recipe(
        name="ddpm-digits",
        description="diffusion (UNet, 0.2 M) on the digits",
        task=DdpmDigits(),
        metric=Metric("loss", "validation denoising loss", False),
        steps=400,
        batch_size=32,
        eval_every=200,
        checkpoint_every=200,
        schedule="cosine",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai": 2e-2,
            "sgdsai-sqrt-numel": 2e-2,
            "adamw": 2e-2,
            "sgd": 2e-1,
            "sgdm-decoupled": 2.0,
            "sgdsai-shuffled": 2e-1,
            "sgdsai-orthogonal": 2e-2,
            "sgdsai-factored": 1e-2,
            "muon-factored": 2e-2,
            "muon-adamw": 2e-2,
        },
    )
