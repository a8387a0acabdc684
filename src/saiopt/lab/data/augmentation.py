"""Random crops and flips, without torchvision."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from PIL.Image import Image

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


def crop_and_flip(images: Tensor, margin: int, random: torch.Generator) -> Tensor:
    """Shift every image by up to ``margin`` pixels and mirror half of them.

    Args:
        images: Shape (n, channels, height, width).
        margin: Pixels of zeros around an image before it is cropped to its size.
        random: Where shifts and flips come from.

    Returns:
        As ``images``.
    """
    count, _, height, width = images.shape
    padded = pad(images, (margin, margin, margin, margin))
    shifts = torch.randint(2 * margin + 1, (2, count, 1), generator=random)
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    flipped = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    examples = torch.arange(count)[:, None, None]
    # Advanced indices on both sides of a slice come first in the result.
    return padded[examples, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def random_resized_crop(image: "Image", side: int, random: torch.Generator) -> Tensor:
    """Cut a random part of 8 to 100 % of the area, resize it and mirror half of them.

    Args:
        image: In colour.
        side: Pixels of the result's sides.
        random: Where the part comes from.

    Returns:
        Shape (3, side, side), uint8.

    References:
        Szegedy et al. 2015, section 6.
    """
    left, top, width, height = _part(image.width, image.height, random)
    box = (left, top, left + width, top + height)
    pixels = _resized(image, side, side, box)
    flipped = torch.rand((), generator=random) < 0.5
    return pixels.flip(2) if flipped else pixels


def centre_crop(image: "Image", side: int) -> Tensor:
    """Resize an image until its short side is 8/7 of ``side``, and cut out the middle.

    Args:
        image: In colour.
        side: Pixels of the result's sides, such as 224 of 256.

    Returns:
        Shape (3, side, side), uint8.
    """
    scale = min(image.width, image.height) / (side * 8 / 7)
    cut = side * scale
    left, top = (image.width - cut) / 2, (image.height - cut) / 2
    return _resized(image, side, side, (left, top, left + cut, top + cut))


def _part(
    width: int, height: int, random: torch.Generator
) -> tuple[int, int, int, int]:
    for _ in range(_TRIES):
        share, tilt, x, y = torch.rand(4, generator=random).tolist()
        area = width * height * (_AREA[0] + share * (_AREA[1] - _AREA[0]))
        low, high = map(math.log, _RATIO)
        ratio = math.exp(low + tilt * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def _resized(
    image: "Image", width: int, height: int, box: tuple[float, float, float, float]
) -> Tensor:
    from PIL.Image import Resampling

    resized = image.convert("RGB").resize((width, height), Resampling.BILINEAR, box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
