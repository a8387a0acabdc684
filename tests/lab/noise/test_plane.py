import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saiopt import SGDSaI
from saiopt.lab.draws import generator
from saiopt.lab.noise.layer_scales import OPTIMIZERS, layer_scales
from saiopt.lab.noise.networks import FullyConnected, draw_weights
from saiopt.lab.noise.parity import Images, load_images, split
from saiopt.lab.noise.plane import Cell, Plane, Training, train_plane

NET = FullyConnected(inputs=64, width=12)
LOOK = 16


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits")


def training(max_steps: int = 3000) -> Training:
    return Training(NET, 4, max_steps, 100, torch.device("cpu"))


def train(cells: list[Cell], images: Images, max_steps: int = 3000) -> dict[Cell, Any]:
    rows: list[dict[str, Any]] = []
    train_plane(
        cells, training(max_steps), images, LOOK, lambda _, ended: rows.extend(ended)
    )
    by_cell = {Cell(*(row[name] for name in Cell.__match_args__)): row for row in rows}
    assert len(rows) == len(by_cell) == len(cells)
    return by_cell


def train_alone(cell: Cell, images: Images, steps: int) -> tuple[list[Tensor], int]:
    """One network, one step after the other, with autograd; weights and last move."""
    start = draw_weights(NET, cell.seed, torch.float64)
    weights = [weight.clone().requires_grad_() for weight in start]
    inside, _ = split(images, cell.seed, 100)
    lr = cell.temperature * 4 * NET.width
    scales, moved = None, 0
    for step in range(steps):
        if step % LOOK == 0:
            source = generator(cell.seed, 2, step)
            draws = torch.rand((LOOK, 4), generator=source, dtype=torch.float64)
        rows = inside[(draws[step % LOOK] * cell.size).long()]
        x, y = images.images[rows], images.labels[rows]
        predictor = NET.output(weights, x) - NET.output(start, x)
        loss = torch.relu(1 - cell.alpha * y * predictor).mean() / cell.alpha
        grads = torch.autograd.grad(loss, weights)
        if scales is None:
            scales = layer_scales(cell.optimizer, [g[None] for g in grads])
        if any(g.any() for g in grads):
            moved = step + 1
        for weight, grad, scale in zip(weights, grads, scales, strict=True):
            weight.data -= lr * scale[0] * grad
    return [weight.detach() for weight in weights], moved


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_networks_trained_together_end_where_each_ends_alone(
    images: Images, optimizer: str
) -> None:
    cells = [
        Cell(optimizer, 20, 1.0, 0.02, 0),
        Cell("sgd", 12, 100.0, 0.05, 1),
        Cell("sgd", 20, 0.1, 0.01, 0),
    ]
    plane = Plane(cells, training(), images)
    with torch.no_grad():
        plane.advance(LOOK)
        plane.advance(LOOK)
    for i, cell in enumerate(cells):
        for together, alone in zip(
            plane.weights, train_alone(cell, images, 2 * LOOK)[0], strict=True
        ):
            assert torch.allclose(together[i], alone, rtol=1e-9, atol=1e-12)


def test_time_ends_with_the_last_step_that_moved_the_weights(images: Images) -> None:
    cell = Cell("sgd", 12, 100.0, 0.05, 1)
    row = train([cell, Cell("sgd", 16, 1.0, 0.02, 0)], images)[cell]
    looked = math.ceil(row["steps"] / LOOK) * LOOK
    weights, moved = train_alone(cell, images, looked + LOOK)
    assert row["status"] == "fitted"
    assert row["steps"] == moved
    assert row["time"] == pytest.approx(moved * 0.05 * 4)
    start = draw_weights(NET, 1, torch.float64)
    change = math.sqrt(
        sum((a - b).square().sum().item() for a, b in zip(weights, start, strict=True))
        / sum(b.square().sum().item() for b in start)
    )
    assert row["weight_change"] == pytest.approx(change, rel=1e-9)
    inside, outside = split(images, 1, 100)
    predictor = NET.output(weights, images.images) - NET.output(start, images.images)
    wrong = predictor * images.labels <= 0
    assert not wrong[inside[:12]].any()
    assert row["test_error"] == pytest.approx(wrong[outside].double().mean().item())


def test_the_first_step_moves_the_output_layer_by_t_sum_y_h(images: Images) -> None:
    # F = 0 at the start, so that every point pulls, whatever α is: with the hidden
    # signals h and f = a·h/width, a step adds width·TB·mean(y h)/width = T Σ y h to a.
    for alpha in (1e-3, 1.0, 2.0**15):
        cell = Cell("sgd", 20, alpha, 0.3, 0)
        plane = Plane([cell], training(), images)
        with torch.no_grad():
            plane.advance(1)
        start = draw_weights(NET, 0, torch.float64)
        draws = torch.rand((1, 4), generator=generator(0, 2, 0), dtype=torch.float64)
        rows = split(images, 0, 100)[0][(draws[0] * 20).long()]
        hidden = images.images[rows].flatten(1)
        for weight in start[:-1]:
            hidden = math.sqrt(2 / weight.shape[1]) * torch.relu(hidden @ weight.T)
        expected = 0.3 * images.labels[rows] @ hidden
        assert torch.allclose(plane.weights[-1][0] - start[-1], expected, rtol=1e-9)


def test_no_network_is_dropped_whatever_becomes_of_it(images: Images) -> None:
    rows = train(
        [
            Cell("sgd", 16, 1.0, 0.02, 0),
            Cell("sgd", 16, 1.0, 100.0, 0),
            Cell("sgd", 16, 1.0, 1e-9, 0),
        ],
        images,
        max_steps=300,
    )
    states = [row["status"] for row in rows.values()]
    assert sorted(states) == ["diverged", "fitted", "unfitted"]
    for row in rows.values():
        assert (row["test_error"] is None) == (row["status"] == "diverged")


@pytest.mark.parametrize(
    ("optimizer", "scaling"), [("sgdsai", "gsnr"), ("sgdsai-sqrt-numel", "sqrt_numel")]
)
def test_scales_are_those_of_sgdsai_up_to_one_factor(
    optimizer: str, scaling: Any
) -> None:
    params = [nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(9))]
    for param in params:
        param.grad = torch.randn_like(param) + 0.3
    grads = [param.grad.double() for param in params if param.grad is not None]
    ours = layer_scales(optimizer, [torch.stack([g, -2 * g]) for g in grads])
    reference = SGDSaI(params, momentum=0.0, scaling=scaling)
    reference.step()
    theirs = [reference.state[param]["scale"].item() for param in params]
    for network in range(2):
        ratios = [
            layer[network].item() / scale
            for layer, scale in zip(ours, theirs, strict=True)
        ]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)
    power = [g.square().sum() for g in grads]
    mean = sum(s[0] * p for s, p in zip(ours, power, strict=True)) / sum(power)
    assert mean.item() == pytest.approx(1)


def test_factored_scales_are_those_of_sgdsai_up_to_one_factor() -> None:
    params = [nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(9))]
    for param in params:
        param.grad = torch.randn_like(param) + 0.3
    grads = [param.grad.double() for param in params if param.grad is not None]
    before = [param.detach().clone() for param in params]
    ours = layer_scales("sgdsai-factored", [torch.stack([g, -2 * g]) for g in grads])
    SGDSaI(params, lr=1.0, momentum=0.0, weight_decay=0.0, scaling="factored").step()
    for network in range(2):
        ratios = torch.cat(
            [
                ((old - param.detach()) / g / layer[network]).flatten()
                for old, param, g, layer in zip(
                    before, params, grads, ours, strict=True
                )
            ]
        )
        torch.testing.assert_close(
            ratios, ratios[:1].expand_as(ratios), rtol=1e-4, atol=0
        )
    lowered = sum((s[0] * g.square()).sum() for s, g in zip(ours, grads, strict=True))
    assert lowered.item() == pytest.approx(sum(g.square().sum().item() for g in grads))


def test_the_control_scales_by_one() -> None:
    grads = [torch.randn(3, 4, 5), torch.randn(3, 6)]
    for scale in layer_scales("sgd", grads):
        assert torch.equal(scale.flatten(), torch.ones(3))
