"""Denoising diffusion on scikit-learn's digits."""

from collections.abc import Callable, Collection

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from saiopt.lab.data.digits import read_digits, shuffled_rows
from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.tasks.frechet import DigitFeatures, frechet_distance
from saiopt.lab.tasks.seeded import SeededModel

_NOISE_LEVELS = 1000
_NOISE_KEY, _HELD_OUT_KEY, _SAMPLE_KEY = 1, 2, 3
_GRID = 8


class DigitDiffusion(SeededModel):
    """Predict the noise in a noisy image of 8x8 pixels.

    Args:
        unet: Builds a UNet of diffusers for one channel, its weights drawn from torch's
            generator.
        classes: The digits that are learnt and generated.
        held_out_repeats: Noise levels at which every held-out image is tested.
        samples: Images that are generated for the Fréchet distance.
        sampling_steps: Steps of the sampler per image, up to 1000.
    """

    def __init__(
        self,
        unet: Callable[[], nn.Module],
        classes: Collection[int],
        held_out_repeats: int,
        samples: int,
        sampling_steps: int,
    ) -> None:
        super().__init__(unet)
        self._held_out_repeats = held_out_repeats
        self._samples, self._sampling_steps = samples, sampling_steps
        digits = read_digits()
        self._digits = digits.only(classes)
        named = "".join(map(str, sorted(classes)))
        self.fingerprint = f"{digits.fingerprint}-{named}"
        self._features = DigitFeatures(digits)
        self._real = self._features(self._digits.held_out_images)
        self._noising = DDPMScheduler(_NOISE_LEVELS, beta_schedule="squaredcos_cap_v2")

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Take images in a new random order every epoch, with fresh noise.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of images.

        Returns:
            ``images`` and ``noise``, shape (size, 1, 8, 8), float32, and ``levels``,
            shape (size,), int64.

        Raises:
            ValueError: If there are fewer images than ``size``.
        """
        rows = shuffled_rows(len(self._digits.labels), size, seed, step)
        return _noisy(self._digits.images[rows], generator(seed, step, _NOISE_KEY))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of the predicted noise.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor; 1 for a model that predicts nothing.
        """
        levels = batch["levels"]
        noisy = self._noising.add_noise(batch["images"], batch["noise"], levels)  # pyright: ignore[reportArgumentType]
        return mse_loss(model(noisy, levels).sample, batch["noise"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on held-out images and the distance of generated ones.

        Noise, noise levels and the noise that samples grow from are always the same.

        Args:
            model: In eval mode.

        Returns:
            ``loss``, and ``frechet``, the Fréchet distance between the features of
            generated and held-out images.
        """
        device = next(model.parameters()).device
        images = self._digits.held_out_images
        repeated = images.repeat(self._held_out_repeats, 1, 1, 1)
        held_out = _noisy(repeated, generator(_HELD_OUT_KEY))
        loss = self.loss(model, {k: t.to(device) for k, t in held_out.items()})
        samples = self._sample(model, self._samples)
        return {
            "loss": loss.item(),
            "frechet": frechet_distance(self._features(samples), self._real),
        }

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """Generate the images that a reader wants to see.

        Args:
            model: In eval mode.

        Returns:
            ``samples``, and held-out images to compare them with as ``real``, shape
            (8, 8, 8, 8): rows, columns, and the pixels of each image, in [0, 1], dark
            digits on a light ground.
        """
        count = _GRID * _GRID
        images = {
            "samples": self._sample(model, count),
            "real": self._digits.held_out_images[:count],
        }
        return {
            name: (1 - pixels).div(2).view(_GRID, _GRID, 8, 8).cpu()
            for name, pixels in images.items()
        }

    def _sample(self, model: nn.Module, count: int) -> Tensor:
        device = next(model.parameters()).device
        steps = DDIMScheduler(_NOISE_LEVELS, beta_schedule="squaredcos_cap_v2")
        steps.set_timesteps(self._sampling_steps)
        images = torch.randn(count, 1, 8, 8, generator=generator(_SAMPLE_KEY))
        images = images.to(device)
        for level in steps.timesteps:
            noise = model(images, level.to(device)).sample
            images = steps.step(noise, level, images).prev_sample  # pyright: ignore
        return images


def _noisy(images: Tensor, random: torch.Generator) -> dict[str, Tensor]:
    return {
        "images": images,
        "noise": torch.randn(images.shape, generator=random),
        "levels": torch.randint(_NOISE_LEVELS, (len(images),), generator=random),
    }
