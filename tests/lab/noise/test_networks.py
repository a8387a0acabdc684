import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn
from torch.func import vmap

from saiopt.lab.noise.networks import (
    GAINS,
    FullyConnected,
    Mnas,
    activation,
    build,
    draw_weights,
)


@pytest.mark.parametrize("name", GAINS)
def test_the_activation_has_second_moment_one(name: str) -> None:
    def integrand(z: float) -> float:
        value = activation(torch.tensor(z, dtype=torch.float64), name).item()
        return value**2 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    assert quad(integrand, -12, 12, points=[0])[0] == pytest.approx(1, abs=1e-8)


def test_signals_keep_their_size_through_the_layers() -> None:
    net = FullyConnected(inputs=64, width=128)
    image = torch.randn(1, 64, dtype=torch.float64)
    image *= 8 / image.norm()
    sizes = []
    for seed in range(200):
        hidden = image
        for weight in draw_weights(net, seed, torch.float64)[:-1]:
            hidden = activation(hidden @ weight.T / math.sqrt(weight.shape[1]))
        sizes.append(hidden.square().mean())
    mean, error = torch.stack(sizes).mean(), torch.stack(sizes).std() / 200**0.5
    assert abs(mean - 1) < 3.29 * error < 0.15


def test_the_network_is_five_hidden_layers_without_biases() -> None:
    net = FullyConnected(inputs=6, width=5)
    weights = draw_weights(net, 0, torch.float64)
    layers = nn.Sequential()
    for weight in weights[:-1]:
        layer = nn.Linear(*reversed(weight.shape), bias=False, dtype=torch.float64)
        layer.weight.data = weight * math.sqrt(2 / weight.shape[1])
        layers.extend([layer, nn.ReLU()])
    assert len(layers) == 10
    images = torch.randn(3, 1, 2, 3, dtype=torch.float64)
    expected = layers(images.flatten(1)) @ weights[-1] / 5
    assert torch.allclose(net.output(weights, images), expected, rtol=1e-12)


def test_many_convolutional_nets_give_what_each_gives_alone() -> None:
    net = Mnas(channels=3, width=4)
    seeds = [draw_weights(net, seed, torch.float64) for seed in range(3)]
    images = torch.randn(3, 2, 3, 8, 8, dtype=torch.float64)
    together = vmap(net.output)(
        [torch.stack(layer) for layer in zip(*seeds, strict=True)], images
    )
    alone = [net.output(*pair) for pair in zip(seeds, images, strict=True)]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-10)
    assert together.unique().numel() == 6


def test_weights_are_standard_normal_and_depend_on_the_seed_alone() -> None:
    net = FullyConnected(inputs=100, width=200)
    first, again, other = (
        draw_weights(net, seed, torch.float64)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.mean().item() == pytest.approx(0, abs=0.03)
    assert first.std().item() == pytest.approx(1, abs=0.03)


def test_layers_and_activation_are_those_that_were_asked_for() -> None:
    net = build("fc", (1, 2, 2), width=3, depth=2, activation="gelu")
    assert net.shapes() == [(3, 4), (3, 3), (3,)]
    weights = draw_weights(net, 0, torch.float64)
    images = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    hidden = images.flatten(1)
    for weight in weights[:-1]:
        z = hidden @ weight.T / math.sqrt(weight.shape[1])
        hidden = GAINS["gelu"] * nn.functional.gelu(z)
    torch.testing.assert_close(net.output(weights, images), hidden @ weights[-1] / 3)
    convolutional = build("mnas", (3, 8, 8), width=4, depth=2, activation="relu")
    assert len(convolutional.shapes()) == 2 + 3 * 2


def test_the_published_net_has_the_layers_that_its_authors_gave_it() -> None:
    net = build("mnas-published", (3, 32, 32), width=2, depth=2, activation="gelu")
    assert net.width == 40
    weights = draw_weights(net, 0, torch.float64)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    sizes = iter(weights)

    def layer(x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = next(sizes)
        scaled = weight / math.sqrt(weight[0].numel())
        kernel = weight.shape[-1]
        return nn.functional.conv2d(x, scaled, None, stride, kernel // 2, groups=groups)

    def phi(z: Tensor) -> Tensor:
        return GAINS["gelu"] * nn.functional.gelu(z)

    x = phi(layer(images, stride=2))
    assert x.shape == (2, 8, 16, 16)
    x = phi(layer(phi(layer(x, groups=8))))
    assert x.shape == (2, 4, 16, 16)
    for channels, size in ((2, 8), (6, 4)):
        for stride in (2, 1):
            wide = 3 * x.shape[1]
            inside = phi(layer(phi(layer(x)), stride, groups=wide))
            assert inside.shape[1] == wide
            projected = layer(inside)
            x = projected if stride == 2 else (x + projected) / math.sqrt(2)
        assert x.shape == (2, channels, size, size)
    x = phi(layer(x)).mean(dim=(2, 3))
    torch.testing.assert_close(net.output(weights, images), x @ next(sizes) / 40)
    assert list(sizes) == []
    assert [tuple(w.shape) for w in weights] == net.shapes()
