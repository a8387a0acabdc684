"""Many networks trained together by SGD, each at its own α, T, P and seed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from saiopt.lab.draws import generator
from saiopt.lab.noise.layer_scales import layer_scales
from saiopt.lab.noise.networks import Architecture, Weights, draw_weights
from saiopt.lab.noise.parity import Images, split

_BATCHES = 2
_FAR = 1e3


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        optimizer: A name of :data:`saiopt.lab.noise.layer_scales.OPTIMIZERS`.
        size: P, number of training points.
        alpha: α of the loss relu(1 - αyF)/α.
        temperature: T = η/B.
        seed: Of weights, points and batches.
    """

    optimizer: str
    size: int
    alpha: float
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Training:
    """What the cells of a plane share.

    Args:
        architecture: Of the networks.
        batch_size: B, points of a step, drawn with replacement.
        max_steps: Before training is given up.
        held_out: Images for the test error.
        device: Where to train.
        dtype: Of the weights.
    """

    architecture: Architecture
    batch_size: int
    max_steps: int
    held_out: int
    device: torch.device
    dtype: torch.dtype = torch.float64


class Plane:
    """Networks in training; those that have ended are taken out.

    F = f(w) - f(w0). A step is w ← w - width·η s ∇L with L = mean relu(1 - αyF)/α over
    the batch: the width makes up for the output's 1/width, so that F moves by O(η) at
    any width. Networks of the same seed see the same points, start and batches,
    whichever networks are trained beside them.

    Args:
        cells: One per network.
        training: What they share.
        images: The task.
    """

    def __init__(
        self, cells: Sequence[Cell], training: Training, images: Images
    ) -> None:
        self.cells = list(cells)
        self._training = training
        self._output = vmap(training.architecture.output)
        self._gradient = vmap(grad(self._loss, has_aux=True))
        self.steps = 0
        self._load(images)
        self._alphas = self._column([cell.alpha for cell in cells])
        self._rates = self._column(
            [
                cell.temperature * training.batch_size * training.architecture.width
                for cell in cells
            ]
        )
        self._sizes = self._column([cell.size for cell in cells])
        by_seed = [
            draw_weights(training.architecture, seed, training.dtype)
            for seed in self._seeds
        ]
        layers = [torch.stack(layer) for layer in zip(*by_seed, strict=True)]
        self._starts = [layer.to(training.device) for layer in layers]
        self._start_outputs = self._output(self._starts, self._points)
        self._start_held_out = self._output(self._starts, self._held_out)
        self.weights = [layer[self._rows] for layer in self._starts]
        self._last_events = self._column([0] * len(cells), torch.int64)
        self._scales: list[Tensor] = []

    def advance(self, steps: int) -> None:
        """Train all networks.

        Args:
            steps: Number of steps.
        """
        for batch in self._draw(steps).unbind(1):
            places = batch[self._rows]
            places = (places * self._sizes[:, None]).long()
            rows = self._rows[:, None]
            grads, has_event = self._gradient(
                self.weights,
                self._points[rows, places],
                self._labels[rows, places],
                self._start_outputs[rows, places],
                self._alphas,
            )
            self._descend(grads)
            self.steps += 1
            self._last_events[has_event] = self.steps

    def take_out_ended(self) -> list[dict[str, Any]]:
        """Measure and remove the networks that are fitted, diverged or out of steps.

        Returns:
            Their rows.
        """
        outputs = self._outputs(self._points, self._start_outputs)
        margins = self._alphas[:, None] * self._labels[self._rows] * outputs
        beyond = torch.arange(margins.shape[1], device=margins.device)
        counts = beyond < self._sizes[:, None]
        fitted = ((margins >= 1) | ~counts).all(dim=1)
        changes = self._weight_changes()
        # Beyond this the start is forgotten and hinge's bounded pull has no hold.
        finite = (outputs.isfinite() | ~counts).all(dim=1) & (changes < _FAR)
        out_of_steps = self.steps >= self._training.max_steps
        ended = fitted | ~finite | out_of_steps
        if not ended.any():
            return []
        errors = self._test_errors()
        rows = [
            self._row(i, bool(fitted[i]), bool(finite[i]), errors[i], float(changes[i]))
            for i in ended.nonzero().flatten().tolist()
        ]
        self._keep(~ended)
        return rows

    def _loss(
        self, weights: Weights, x: Tensor, y: Tensor, start: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        predictor = self._training.architecture.output(weights, x) - start
        missing = torch.relu(1 - alpha * y * predictor)
        return missing.mean() / alpha, (missing > 0).any()

    def _descend(self, grads: Sequence[Tensor]) -> None:
        if not self._scales:
            self._scales = self._measure_scales(grads)
        for weight, layer_grad, scale in zip(
            self.weights, grads, self._scales, strict=True
        ):
            step_size = self._rates.view(-1, *[1] * (weight.dim() - 1)) * scale
            weight.addcmul_(layer_grad, step_size, value=-1)

    def _measure_scales(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Calibrate on the first batch: since F = 0, all its points are unfitted."""
        by_rule = {
            name: layer_scales(name, grads)
            for name in {cell.optimizer for cell in self.cells}
        }
        return [
            torch.stack(
                torch.broadcast_tensors(
                    *(by_rule[c.optimizer][k][i] for i, c in enumerate(self.cells))
                )
            )
            for k in range(len(grads))
        ]

    def _draw(self, steps: int) -> Tensor:
        """Return uniform numbers, shape (num_seeds, steps, B), that name the points."""
        shape = (steps, self._training.batch_size)
        draws = [
            torch.rand(
                shape,
                generator=generator(seed, _BATCHES, self.steps),
                dtype=torch.float64,
            )
            for seed in self._seeds
        ]
        return torch.stack(draws).to(self._training.device)

    def _load(self, images: Images) -> None:
        training = self._training
        self._seeds = sorted({cell.seed for cell in self.cells})
        pool = max(cell.size for cell in self.cells)
        self._rows = self._column(
            [self._seeds.index(cell.seed) for cell in self.cells], torch.int64
        )
        parts = [split(images, seed, training.held_out) for seed in self._seeds]
        inside = torch.stack([points[:pool] for points, _ in parts])
        outside = torch.stack([points for _, points in parts])
        place = {"device": training.device, "dtype": training.dtype}
        self._points = images.images[inside].to(**place)
        self._labels = images.labels[inside].to(**place)
        self._held_out = images.images[outside].to(**place)
        self._held_out_labels = images.labels[outside].to(**place)

    def _column(
        self, values: Sequence[float], dtype: torch.dtype | None = None
    ) -> Tensor:
        dtype = dtype or self._training.dtype
        return torch.tensor(values, dtype=dtype, device=self._training.device)

    def _outputs(self, points: Tensor, start: Tensor) -> Tensor:
        return self._output(self.weights, points[self._rows]) - start[self._rows]

    def _test_errors(self) -> list[float]:
        outputs = self._outputs(self._held_out, self._start_held_out)
        wrong = outputs * self._held_out_labels[self._rows] <= 0
        return wrong.double().mean(dim=1).tolist()

    def _weight_changes(self) -> Tensor:
        """Return ‖w - w0‖ / ‖w0‖ over all layers."""
        moved, start = torch.zeros_like(self._alphas), torch.zeros_like(self._alphas)
        for weight, first in zip(self.weights, self._starts, strict=True):
            first = first[self._rows]
            moved += (weight - first).flatten(1).square().sum(dim=1)
            start += first.flatten(1).square().sum(dim=1)
        return (moved / start).sqrt()

    def _row(
        self, i: int, fitted: bool, finite: bool, error: float, change: float
    ) -> dict[str, Any]:
        cell = self.cells[i]
        status = "fitted" if fitted else "unfitted" if finite else "diverged"
        steps = int(self._last_events[i]) if fitted else self.steps
        return {
            **dataclasses.asdict(cell),
            "status": status,
            "steps": steps,
            "time": steps * cell.temperature * self._training.batch_size,
            "weight_change": change if finite else None,
            "test_error": error if finite else None,
        }

    def _keep(self, kept: Tensor) -> None:
        self.cells = [cell for cell, keep in zip(self.cells, kept, strict=True) if keep]
        for name in ("_alphas", "_rates", "_sizes", "_rows", "_last_events"):
            setattr(self, name, getattr(self, name)[kept])
        self.weights = [weight[kept] for weight in self.weights]
        self._scales = [scale[kept] for scale in self._scales]


def train_plane(
    cells: Sequence[Cell],
    training: Training,
    images: Images,
    look_every: int,
    observe: Callable[[int, list[dict[str, Any]]], None],
) -> None:
    """Train networks together until each is fitted, diverged or out of steps.

    Once a network is fitted, no batch moves it, so that looking only now and then
    changes no result; ``time`` is that of the last step that moved it.

    Args:
        cells: One per network.
        training: What they share.
        images: The task.
        look_every: Steps between looks.
        observe: Told of the steps taken and of the rows of networks that ended.
    """
    plane = Plane(cells, training, images)
    with torch.no_grad():
        while plane.cells:
            plane.advance(min(look_every, training.max_steps - plane.steps))
            observe(plane.steps, plane.take_out_ended())
