"""A picture of many small images."""

import io
from pathlib import Path

import torch
from torch import Tensor

from saiopt.analysis.figure import write_whole

_GAP = 8
_SMALLEST_SIDE = 64


def write_grid(path: Path, images: Tensor) -> None:
    """Write images in rows and columns; small ones enlarged, their pixels as squares.

    Args:
        path: PNG file to write.
        images: Shape (rows, columns, height, width) for grey, or (rows, columns, 3,
            height, width); values in [0, 1], what lies outside is clipped.
    """
    from PIL import Image

    if images.dim() == 4:
        images = images.unsqueeze(2)
    factor = -(-_SMALLEST_SIDE // images.shape[-1])
    large = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    framed = torch.nn.functional.pad(large, (0, _GAP, 0, _GAP), value=1.0)
    rows, columns, channels, height, width = framed.shape
    joined = framed.permute(0, 3, 1, 4, 2).reshape(
        rows * height, columns * width, channels
    )
    joined = torch.nn.functional.pad(joined, (0, 0, _GAP, 0, _GAP, 0), value=1.0)
    pixels = joined.clamp(0, 1).mul(255).round().byte().cpu().numpy()
    drawn = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(drawn, "PNG")
    write_whole(path, drawn.getvalue())
