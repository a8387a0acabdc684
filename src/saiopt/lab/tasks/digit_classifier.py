"""ViT from transformers' config on scikit-learn's digits."""

import hashlib
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification, ViTConfig

from saiopt.lab.draws import generator
from saiopt.lab.task import Batch

if TYPE_CHECKING:
    from saiopt.lab.recipes.vit_digits import VitDigits

_HELD_OUT_SHARE = 1 / 3
_SPLIT_SEED = 0


class DigitClassifier:
    """Name the digit in an image of 8x8 pixels.

    The split is the same for all seeds: 1198 images for training, 599 held out,
    equally many of each digit as far as it goes.

    Args:
        config: Sizes.
    """

    def __init__(self, config: "VitDigits") -> None:
        self.config = config
        pixels, digits = load_digits(return_X_y=True)
        self.fingerprint = hashlib.sha256(
            pixels.tobytes() + digits.tobytes()
        ).hexdigest()[:16]
        rows = train_test_split(
            range(len(digits)),
            test_size=_HELD_OUT_SHARE,
            random_state=_SPLIT_SEED,
            stratify=digits,
        )
        images = torch.from_numpy(pixels).float().div(8).sub(1).reshape(-1, 1, 8, 8)
        labels = torch.from_numpy(digits).long()
        self._images, self._held_out_images = (images[part] for part in rows)
        self._labels, self._held_out_labels = (labels[part] for part in rows)

    def build_model(self, seed: int) -> nn.Module:
        """Build the ViT without dropout.

        Args:
            seed: Of the initial weights.

        Returns:
            The model on the CPU.
        """
        torch.manual_seed(seed)
        config = ViTConfig(
            image_size=8,
            num_channels=1,
            patch_size=self.config.patch_size,
            hidden_size=self.config.hidden_size,
            intermediate_size=4 * self.config.hidden_size,
            num_hidden_layers=self.config.num_layers,
            num_attention_heads=self.config.num_heads,
            id2label={digit: str(digit) for digit in range(10)},
            label2id={str(digit): digit for digit in range(10)},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return AutoModelForImageClassification.from_config(
            config, attn_implementation="sdpa"
        )

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Take images in a new random order every epoch; an epoch drops its rest.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of images.

        Returns:
            ``images``, shape (size, 1, 8, 8), float32 in [-1, 1], and ``labels``,
            shape (size,), int64.

        Raises:
            ValueError: If there are fewer images than ``size``.
        """
        steps_per_epoch = len(self._labels) // size
        if steps_per_epoch == 0:
            raise ValueError(
                f"batch_size must be at most {len(self._labels)}, got {size}"
            )
        epoch, position = divmod(step, steps_per_epoch)
        order = torch.randperm(len(self._labels), generator=generator(seed, epoch))
        rows = order[position * size : (position + 1) * size]
        return {"images": self._images[rows], "labels": self._labels[rows]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the labels.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor in nats.
        """
        logits = model(pixel_values=batch["images"]).logits
        return cross_entropy(logits, batch["labels"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy and loss on the held-out images.

        Args:
            model: In eval mode.

        Returns:
            ``accuracy`` in [0, 1] and ``loss`` in nats.
        """
        device = next(model.parameters()).device
        labels = self._held_out_labels.to(device)
        logits = model(pixel_values=self._held_out_images.to(device)).logits
        accuracy = (logits.argmax(dim=1) == labels).double().mean()
        return {
            "accuracy": accuracy.item(),
            "loss": cross_entropy(logits, labels).item(),
        }
