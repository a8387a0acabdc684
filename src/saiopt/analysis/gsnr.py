"""g-SNR of every block while a model trains."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from saiopt.analysis.gsnr_rows import GSNRRow, gsnr_table, ratio_courses
from saiopt.distributed.shards import (
    is_sharded,
    local_entries,
    local_grad,
    measure_blocks,
)
from saiopt.optimizer import SGDSaI
from saiopt.optimizer.wrappers import bare_optimizer
from saiopt.scaling import Moments, gsnr


class GSNRProbe:
    """Measure g-SNR between ``backward()`` and ``step()``, and change nothing.

    Args:
        model: A module, or pairs of name and parameter.
        eps: ε of the optimizer that is studied.

    Attributes:
        rows: Everything measured so far, in order.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer(torch.tensor([1.0, -1.0])).sum().backward()
    >>> probe = GSNRProbe(layer)
    >>> [row] = probe.record(step=0)
    >>> row.block, row.numel, round(row.gsnr, 3)
    ('weight', 2, 1.0)
    """

    def __init__(
        self, model: nn.Module | Iterable[tuple[str, Tensor]], eps: float = 1e-8
    ) -> None:
        named = model.named_parameters() if isinstance(model, nn.Module) else model
        self._named = list(named)
        self._eps = eps
        self.rows: list[GSNRRow] = []

    def record(self, step: int) -> list[GSNRRow]:
        """Measure all blocks that have a gradient.

        Where blocks are sharded, every rank must call this.

        Args:
            step: Number that the rows will carry.

        Returns:
            The new rows, one per block, which are also kept in ``rows``.
        """
        # A rank whose part of a block is empty may see no gradient of it.
        blocks = [
            (name, p) for name, p in self._named if p.grad is not None or is_sharded(p)
        ]
        params = [p for _, p in blocks]
        moments = measure_blocks(params)
        zeros = measure_blocks(params, [_is_zero(p) for p in params]).mean
        columns = (
            moments.numel.long(),
            gsnr(moments, self._eps).masked_fill(~moments.usable, math.nan),
            zeros,
            _relative_means(moments),
        )
        new = [
            GSNRRow(name, numel, step, value, share, relative_mean=mean)
            for (name, _), numel, value, share, mean in zip(
                blocks, *(column.tolist() for column in columns), strict=True
            )
            # Sharded blocks of which no rank has a gradient.
            if numel > 0
        ]
        self.rows += new
        return new

    def record_updates(self, optimizer: Optimizer) -> list[GSNRRow]:
        """Add the size of the step that followed the last measurement to its rows.

        η is the group's lr, m the ``momentum_buffer`` after the step, s the ``scale``
        or 1. Decay is left out.

        Args:
            optimizer: After ``step()``.

        Returns:
            The completed rows, ``update`` NaN where the optimizer is another one, or
            keeps no momentum buffer.
        """
        parameters = dict(self._named)
        sizes = update_sizes(optimizer)
        last = self.rows[-1].step if self.rows else None
        done = [
            dataclasses.replace(row, update=sizes.get(parameters[row.block], math.nan))
            for row in self.rows
            if row.step == last
        ]
        self.rows[len(self.rows) - len(done) :] = done
        return done

    def table(self) -> str:
        """Return the first and last measurement of every block as text."""
        return gsnr_table(self.rows)

    def plot(self, path: Path | str, title: str = "") -> None:
        """Draw g-SNR/√n of every block over training.

        Args:
            path: File to write; its suffix names the format.
            title: Heading.
        """
        from saiopt.analysis.gsnr_plot import plot_gsnr

        plot_gsnr(ratio_courses(self.rows), [Path(path)], title)


def update_sizes(optimizer: Optimizer) -> dict[Tensor, float]:
    """Measure by how much of its size the momentum moves each block in a step.

    Args:
        optimizer: After ``step()``, perhaps within a wrapper that has it as its
            ``optimizer``.

    Returns:
        ηs·rms(m) / rms(θ) by parameter, for those with a momentum buffer that is not
        held in codes of a few bits; infinite where all weights are zero. None for other
        optimizers than SGD-SaI and torch's SGD without Nesterov, which do not move by
        ηs·m.
    """
    optimizer = bare_optimizer(optimizer)
    moved = [
        (p, group["lr"], state)
        for group in optimizer.param_groups
        if isinstance(optimizer, (SGDSaI, SGD)) and not group.get("nesterov")
        for p in group["params"]
        for state in [optimizer.state.get(p, {})]
        if isinstance(state.get("momentum_buffer"), Tensor)
        and "momentum_scale" not in state
    ]
    params = [p for p, _, _ in moved]
    momenta = [local_entries(state["momentum_buffer"]) for _, _, state in moved]
    weights = [local_entries(p.detach()) for p in params]
    sizes = [measure_blocks(params, values).norm for values in (momenta, weights)]
    ratios = (sizes[0] / sizes[1]).tolist()
    return {
        p: float(lr) * abs(float(state.get("scale", 1.0))) * ratio
        for (p, lr, state), ratio in zip(moved, ratios, strict=True)
    }


def _relative_means(moments: Moments) -> Tensor:
    """Return |mean| / population std where that is more than rounding noise."""
    std = (moments.squared_deviations / moments.numel).sqrt()
    told = moments.usable & ~moments.degenerate
    return (moments.mean.abs() / std).masked_fill(~told, math.nan)


def _is_zero(parameter: Tensor) -> Tensor | None:
    grad = local_grad(parameter)
    return None if grad is None else (grad == 0).float()
