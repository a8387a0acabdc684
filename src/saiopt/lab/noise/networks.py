"""Networks without biases in the mean-field scaling, as functions of their weights."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, relu

from saiopt.lab.draws import generator

Weights: TypeAlias = Sequence[Tensor]

# φ(z) = gain · activation(z) has E[φ(z)²] = 1 for z ~ N(0, 1): E[relu(z)²] = 1/2 and
# E[gelu(z)²] = 1/3 + 1/(2√3 π).
GAINS = {
    "relu": math.sqrt(2),
    "gelu": (1 / 3 + 1 / (2 * math.sqrt(3) * math.pi)) ** -0.5,
}
_FUNCTIONS = {"relu": relu, "gelu": gelu}


def activation(z: Tensor, name: str = "relu") -> Tensor:
    """Return φ(z), whose second moment is 1 for z ~ N(0, 1).

    Args:
        z: Any shape.
        name: A key of ``GAINS``.

    Returns:
        The same shape.
    """
    return GAINS[name] * _FUNCTIONS[name](z)


class Architecture(Protocol):
    """Shapes of the weights and the output as their function."""

    @property
    def width(self) -> int:
        """h, the fan-in of the output, by which it is divided."""
        ...

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each weight tensor."""
        ...

    def output(self, weights: Weights, images: Tensor) -> Tensor:
        """Return f(w), shape (B,), of images, shape (B, d) or (B, C, H, W)."""
        ...


@dataclasses.dataclass(frozen=True)
class FullyConnected:
    """D hidden layers: h ← φ(W h/√fan_in), f = a·h/width.

    Args:
        inputs: d, number of pixels.
        width: h of every hidden layer.
        depth: D, hidden layers.
        activation: A key of ``GAINS``.

    References:
        Sclocchi, Geiger and Wyart (2023), arXiv 2301.13703.
    """

    inputs: int
    width: int
    depth: int = 5
    activation: str = "relu"

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes from the input to the output.

        Returns:
            (h, d), then (h, h), then (h,).
        """
        hidden = [(self.width, self.width)] * (self.depth - 1)
        return [(self.width, self.inputs), *hidden, (self.width,)]

    def output(self, weights: Weights, images: Tensor) -> Tensor:
        """Return f(w).

        Args:
            weights: Of the shapes above.
            images: Shape (B, ...), flattened to (B, d).

        Returns:
            Shape (B,).
        """
        hidden = images.flatten(1)
        for weight in weights[:-1]:
            hidden = hidden @ weight.T / math.sqrt(weight.shape[1])
            hidden = activation(hidden, self.activation)
        return hidden @ weights[-1] / self.width


@dataclasses.dataclass(frozen=True)
class Mnas:
    """A small convolutional net of inverted bottlenecks, in the manner of MNASNet.

    A 3x3 stem, then per block: 1x1 to twice the width, depthwise 3x3, 1x1 back, added
    to the block's input and divided by √2, with stride 2 in front of each block but the
    first; the mean over space goes into the output. It deviates from MNASNet in having
    neither biases nor batch normalisation, which would hide the scale of the weights.

    Args:
        channels: C of the images.
        width: h.
        blocks: Their number.
        activation: A key of ``GAINS``.
    """

    channels: int
    width: int
    blocks: int = 3
    activation: str = "relu"

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes from the stem to the output.

        Returns:
            (out, in, k, k) of each convolution, then (h,).
        """
        wide = 2 * self.width
        block = [(wide, self.width, 1, 1), (wide, 1, 3, 3), (self.width, wide, 1, 1)]
        return [
            (self.width, self.channels, 3, 3),
            *(block * self.blocks),
            (self.width,),
        ]

    def output(self, weights: Weights, images: Tensor) -> Tensor:
        """Return f(w).

        Args:
            weights: Of the shapes above.
            images: Shape (B, C, H, W).

        Returns:
            Shape (B,).
        """
        hidden = activation(_convolve(images, weights[0]), self.activation)
        for block in range(self.blocks):
            if block:
                hidden = hidden[..., ::2, ::2]
            inside = hidden
            for weight in weights[1 + 3 * block : 4 + 3 * block]:
                inside = activation(_convolve(inside, weight), self.activation)
            hidden = (hidden + inside) / math.sqrt(2)
        return hidden.mean(dim=(-2, -1)) @ weights[-1] / self.width


@dataclasses.dataclass(frozen=True)
class PublishedMnas:
    """The MNASNet of the authors' earlier studies of feature and lazy training.

    In units of h channels: a 5x5 stem of 4 with stride 2, a separable 5x5 to 2, then
    stages i = 0, 1, … of 2i + 1, each of two inverted bottlenecks of expansion 3: the
    first has stride 2, the second is added to its input and divided by √2, and neither
    has an activation behind its last 1x1. A 1x1 head of 20, the mean over space and the
    output. It deviates from that net in the output's scaling, 1/fan_in as of
    ``FullyConnected``, and in having no bias there.

    Args:
        channels: C of the images.
        hidden: h.
        stages: Their number.
        activation: A key of ``GAINS``.

    References:
        Geiger, Spigler, Jacot and Wyart (2020), "Disentangling feature and lazy
        training in deep neural networks", arXiv 1906.08034; its code, feature_lazy.
    """

    channels: int
    hidden: int
    stages: int = 2
    activation: str = "relu"

    @property
    def width(self) -> int:
        """20 h, the fan-in of the output."""
        return 20 * self.hidden

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes from the stem to the output.

        Returns:
            (out, in, k, k) of each convolution, in of depthwise ones 1, then (20 h,).
        """
        h = self.hidden
        shapes = [(4 * h, self.channels, 5, 5), (4 * h, 1, 5, 5), (2 * h, 4 * h, 1, 1)]
        inputs = 2 * h
        for stage in range(self.stages):
            outputs = (2 * stage + 1) * h
            for block_inputs in (inputs, outputs):
                wide = 3 * block_inputs
                shapes += [(wide, block_inputs, 1, 1), (wide, 1, 5, 5)]
                shapes += [(outputs, wide, 1, 1)]
            inputs = outputs
        return [*shapes, (self.width, inputs, 1, 1), (self.width,)]

    def output(self, weights: Weights, images: Tensor) -> Tensor:
        """Return f(w).

        Args:
            weights: Of the shapes above.
            images: Shape (B, C, H, W).

        Returns:
            Shape (B,).
        """
        hidden = self._activated(images, weights[0], stride=2)
        hidden = self._activated(self._activated(hidden, weights[1]), weights[2])
        for block in range(2 * self.stages):
            expand, depthwise, project = weights[3 + 3 * block : 6 + 3 * block]
            inside = self._activated(hidden, expand)
            inside = self._activated(inside, depthwise, stride=1 if block % 2 else 2)
            inside = _convolve(inside, project)
            hidden = (hidden + inside) / math.sqrt(2) if block % 2 else inside
        hidden = self._activated(hidden, weights[-2]).mean(dim=(-2, -1))
        return hidden @ weights[-1] / self.width

    def _activated(self, images: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
        return activation(_convolve(images, weight, stride), self.activation)


def _convolve(images: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    fan_in = math.prod(weight.shape[1:])
    groups = images.shape[-3] // weight.shape[1]
    padding = weight.shape[-1] // 2
    scaled = weight / math.sqrt(fan_in)
    return conv2d(images, scaled, stride=stride, padding=padding, groups=groups)


def build(
    name: str, shape: Sequence[int], width: int, depth: int, activation: str
) -> Architecture:
    """Return an architecture for images of a shape.

    Args:
        name: A member of ``ARCHITECTURES``.
        shape: (C, H, W).
        width: h.
        depth: Hidden layers of ``fc``, blocks of ``mnas``, stages of
            ``mnas-published``.
        activation: A key of ``GAINS``.

    Returns:
        The architecture.
    """
    if name == "fc":
        return FullyConnected(math.prod(shape), width, depth, activation)
    kind = PublishedMnas if name == "mnas-published" else Mnas
    return kind(shape[0], width, depth, activation)


# Names with their usual depths.
ARCHITECTURES = {"fc": 5, "mnas": 3, "mnas-published": 2}


def draw_weights(architecture: Architecture, seed: int, dtype: torch.dtype) -> Weights:
    """Draw all weights from N(0, 1).

    Args:
        architecture: Whose shapes they have.
        seed: Of the draw.
        dtype: Of the result; the draw itself is in float64.

    Returns:
        One tensor per layer, on the CPU.
    """
    source = generator(seed, 1)
    return [
        torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)
        for shape in architecture.shapes()
    ]
