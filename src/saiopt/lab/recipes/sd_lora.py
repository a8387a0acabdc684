"""LoRA of Stable Diffusion on a folder of images, at the paper's size."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.latent_diffusion import LatentDiffusion


@dataclasses.dataclass(frozen=True)
class SdLora:
    """Adapters on the attention of a UNet of 859,520,964 parameters (version 1.5).

    Args:
        checkpoint: The checkpoint's name on the hub, or its folder, with ``unet``,
            ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``.
        images: Folder of the images.
        prompt: What they show.
        side: Pixels to which an image is cut.
        rank: r, the width of an adapter; its output is not scaled.

    Raises:
        ValueError: If a size is below 1.
    """

    packages: ClassVar[tuple[str, ...]] = ("diffusers", "peft")

    checkpoint: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    images: str = "images"
    prompt: str = "a photo of sks"
    side: int = 512
    rank: int = 4

    def __post_init__(self) -> None:
        if min(self.side, self.rank) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")

    def load(self) -> LatentDiffusion:
        """Read the images, and encode them and the prompt.

        Returns:
            The task.

        Raises:
            ValueError: If it is not known what the checkpoint predicts.
        """
        from saiopt.lab.data.published_data import read_checkpoint
        from saiopt.lab.tasks import latent_diffusion as task

        images = task.read_images(Path(self.images), self.side)
        noising = read_checkpoint(self.checkpoint, "checkpoint", task.read_noising)
        predicted = noising.config["prediction_type"]
        if predicted not in task.TARGETS:
            raise ValueError(
                f"task.checkpoint must predict one of {', '.join(task.TARGETS)}, got "
                f"{predicted} in {self.checkpoint}"
            )

        def load(name: str) -> LatentDiffusion:
            digest = hashlib.sha256(images.numpy().tobytes())
            digest.update(f"{name}|{self.prompt}".encode())
            return task.LatentDiffusion(
                task.unet_builder(name),
                noising,
                task.encode_images(name, images),
                task.encode_prompt(name, self.prompt),
                self.rank,
                digest.hexdigest()[:16],
            )

        return read_checkpoint(self.checkpoint, "checkpoint", load)


def sd_lora() -> Recipe:
    """Return the recipe: 1000 steps of 2 images.

    The paper shows pictures only and gives lr 0.1 for SGD-SaI with Mix-of-Show; all
    else is chosen here, after the LoRA examples of diffusers: adapters on attention,
    r = 4, 512 pixels, a constant lr, clipping at norm 1, AdamW at 1e-4 with decay 1e-2.

    Returns:
        The recipe.
    """
    return Recipe(
        name="sd-lora",
        description="LoRA of Stable Diffusion (860 M)",
        task=SdLora(),
        metric=Metric("loss", "denoising loss on the images", False),
        steps=1000,
        batch_size=2,
        eval_every=100,
        checkpoint_every=250,
        schedule="constant",
        warmup_fraction=0.0,
        clip_norm=1.0,
        decay_per_step=1e-6,
        lrs={"sgdsai": 1e-1, "adamw": 1e-4},
        size="published",
    )
