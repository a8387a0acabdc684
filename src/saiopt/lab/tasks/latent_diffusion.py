"""LoRA of a text-to-image diffusion model on a folder of images."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

from saiopt.lab.data.augmentation import centre_crop
from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.tasks.lora import add_lora

# What diffusers knows as a model's output.
TARGETS = ("epsilon", "v_prediction", "sample")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_HELD_OUT_KEY, _HELD_OUT_DRAWS = 2, 16


class LatentDiffusion:
    """Predict the noise in the latents of a few images that share a prompt.

    Args:
        unet: Builds the pre-trained UNet.
        noising: The checkpoint's noise schedule; it names one of ``TARGETS``, of which
            noise, ``epsilon``, is the usual one.
        latents: Of the images, shape (n, 4, height, width).
        prompt: Embedding of the prompt, shape (tokens, width).
        rank: r of the adapters.
        fingerprint: Hash of checkpoint, images and prompt.
    """

    def __init__(
        self,
        unet: Callable[[], nn.Module],
        noising: DDPMScheduler,
        latents: Tensor,
        prompt: Tensor,
        rank: int,
        fingerprint: str,
    ) -> None:
        self._unet, self._noising = unet, noising
        self._latents, self._prompt, self._rank = latents, prompt, rank
        self.fingerprint = fingerprint

    def build_model(self, seed: int) -> nn.Module:
        """Build the pre-trained UNet and its adapters.

        Args:
            seed: Of the adapters' A; B is zero.

        Returns:
            The model on the CPU.
        """
        model = self._unet()
        torch.manual_seed(seed)
        return add_lora(model, ATTENTION, self._rank, self._rank)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Draw images, noise and noise levels.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of examples; images come more than once where they are few.

        Returns:
            ``latents`` and ``noise`` of equal shape, float32, and ``levels``, shape
            (size,), int64.
        """
        return self._noisy(generator(seed, step), size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of what the checkpoint was trained to predict.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor.
        """
        latents, noise, levels = (batch[key] for key in ("latents", "noise", "levels"))
        noisy = self._noising.add_noise(latents, noise, levels)  # pyright: ignore[reportArgumentType]
        prompt = self._prompt.to(noisy.device).expand(len(noisy), -1, -1)
        target = self._target(latents, noise, levels)
        return mse_loss(model(noisy, levels, prompt).sample, target)

    def _target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        kind = self._noising.config["prediction_type"]
        if kind == "v_prediction":
            return self._noising.get_velocity(latents, noise, levels)  # pyright: ignore[reportArgumentType]
        return latents if kind == "sample" else noise

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on the same images at fixed noise and noise levels.

        Few images are all there is, so none is held out.

        Args:
            model: In eval mode.

        Returns:
            ``loss``.
        """
        device = next(model.parameters()).device
        batch = self._noisy(generator(_HELD_OUT_KEY), _HELD_OUT_DRAWS)
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        return {"loss": self.loss(model, on_device).item()}

    def _noisy(self, random: torch.Generator, size: int) -> dict[str, Tensor]:
        rows = torch.randint(len(self._latents), (size,), generator=random)
        latents = self._latents[rows]
        highest = self._noising.config["num_train_timesteps"]
        return {
            "latents": latents,
            "noise": torch.randn(latents.shape, generator=random),
            "levels": torch.randint(highest, (size,), generator=random),
        }


def read_images(folder: Path, side: int) -> Tensor:
    """Read all images of a folder, cut to squares.

    Args:
        folder: With PNG, JPEG or WebP files.
        side: Pixels of the squares' sides.

    Returns:
        Shape (n, 3, side, side), float32 in [-1, 1].

    Raises:
        FileNotFoundError: If there is none.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(path for path in found if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            "task.images must be a folder with PNG, JPEG or WebP files, give it by "
            f"--set task.images=FOLDER, got {folder}"
        )
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(centre_crop(image, side))
    return torch.stack(images).float() / 127.5 - 1


@torch.no_grad()
def encode_images(checkpoint: str, images: Tensor) -> Tensor:
    """Return the mean latents of images, scaled as the UNet expects them.

    Args:
        checkpoint: Folder with ``vae``.
        images: Shape (n, 3, side, side), in [-1, 1].

    Returns:
        Shape (n, channels, height, width), float32.
    """
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    latents = [vae.encode(one[None], return_dict=False)[0].mode()[0] for one in images]
    return torch.stack(latents) * vae.config["scaling_factor"]


@torch.no_grad()
def encode_prompt(checkpoint: str, prompt: str) -> Tensor:
    """Return the embedding of a prompt.

    Args:
        checkpoint: Folder with ``tokenizer`` and ``text_encoder``.
        prompt: What the images show.

    Returns:
        Shape (tokens, width), float32.
    """
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(checkpoint, subfolder="text_encoder")
    tokens = tokenizer(
        prompt, padding="max_length", truncation=True, return_tensors="pt"
    )
    return encoder(tokens["input_ids"])[0][0].float()


def read_noising(checkpoint: str) -> DDPMScheduler:
    """Return a checkpoint's noise schedule.

    Args:
        checkpoint: Folder with ``scheduler``.

    Returns:
        The schedule.
    """
    config, _ = DDPMScheduler.load_config(
        checkpoint, subfolder="scheduler", return_unused_kwargs=True
    )
    return cast("DDPMScheduler", DDPMScheduler.from_config(config))


def unet_builder(checkpoint: str) -> Callable[[], nn.Module]:
    """Find a checkpoint's UNet.

    Args:
        checkpoint: Folder with ``unet``.

    Returns:
        A function that builds it, with its weights unless it is built on the meta
        device.
    """
    config, _ = UNet2DConditionModel.load_config(
        checkpoint, subfolder="unet", return_unused_kwargs=True
    )

    def build() -> nn.Module:
        if torch.get_default_device().type == "meta":
            return cast("nn.Module", UNet2DConditionModel.from_config(config))
        return UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")

    return build
