"""LoRA of a diffusion model from the digits 0 to 7 to the digits 8 and 9."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from saiopt.lab.recipe import Metric, Recipe
from saiopt.lab.recipes.ddpm_digits import DdpmDigits

if TYPE_CHECKING:
    from saiopt.lab.tasks.adapted import AdaptedTask

_HELD_OUT = (8, 9)
_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")


@dataclasses.dataclass(frozen=True)
class LoraDdpmDigits:
    """Adapters on the attention and the convolutions of the UNet of ``ddpm-digits``.

    Args:
        pretraining_steps: Steps of 32 images of the digits 0 to 7, with AdamW.
        rank: r, the width of an adapter.
        alpha: An adapter's output is scaled by alpha/r.
        held_out_repeats: Noise levels at which every held-out image is tested.
        samples: Images that are generated for the Fréchet distance.

    Raises:
        ValueError: If a size is out of its range.
    """

    packages: ClassVar[tuple[str, ...]] = ("diffusers", "peft", "scikit-learn")

    pretraining_steps: int = 600
    rank: int = 4
    alpha: int = 4
    held_out_repeats: int = 8
    samples: int = 256

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        self._unet()

    def load(self) -> AdaptedTask:
        """Read the digits and pre-train, or read the pre-trained weights.

        Returns:
            The task.
        """
        from saiopt.lab.tasks.adapted import AdaptedTask
        from saiopt.lab.tasks.pretraining import Pretraining, pretrained

        unet = self._unet()
        known = unet.task_on(set(range(10)).difference(_HELD_OUT))
        plan = Pretraining(self.pretraining_steps, batch_size=32, lr=2e-3)
        weights = pretrained(self, known, plan, {"width": unet.width})
        new = unet.task_on(_HELD_OUT)
        return AdaptedTask(new, weights, _LAYERS, self.rank, self.alpha)

    def _unet(self) -> DdpmDigits:
        return DdpmDigits(held_out_repeats=self.held_out_repeats, samples=self.samples)


def lora_ddpm_digits() -> Recipe:
    """Return the recipe: 28 epochs of the 236 images of the digits 8 and 9.

    Deviates from what is published for large diffusion models, where attention alone is
    adapted: this UNet has two small attention layers and is mostly convolutions.

    Returns:
        The recipe with the learning rates of ``studies/learning_rates``.
    """
    return Recipe(
        name="lora-ddpm-digits",
        description="LoRA of that UNet, digits 0-7 to 8 and 9",
        task=LoraDdpmDigits(),
        metric=Metric("loss", "validation denoising loss", False),
        steps=200,
        batch_size=32,
        eval_every=100,
        checkpoint_every=100,
        schedule="linear",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai": 1.0,
            "sgdsai-sqrt-numel": 1.0,
            "adamw": 2e-2,
            "sgd": 2.0,
            "sgdm-decoupled": 20.0,
            "scaled-gd": 10.0,
            "scaled-adamw": 2e-2,
            "sgdsai-frozen-a": 10.0,
            "adamw-frozen-a": 5e-2,
            "sgdsai-orthogonal": 2e-2,
            "sgdsai-factored": 2e-2,
            "muon-factored": 2e-2,
            "muon-adamw": 2e-2,
        },
    )
