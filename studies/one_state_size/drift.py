"""How far scales that were fixed at the start are from those of the end."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.lab.optimizers import build_optimizer
from saiopt.lab.schedules import lr_factor
from saiopt.lab.task import Task
from saiopt.lab.training.accumulation import accumulate
from saiopt.lab.training.environment import deterministic
from saiopt.lab.training.run import Run
from saiopt.optimizer import parameter_roles

# As many gradients as the library measures.
GRADIENTS = 100


@dataclasses.dataclass(frozen=True)
class Drift:
    """Root mean squares of log₂ of the scales of the end over the fixed ones.

    Args:
        whole: Over the entries of all tensors of a role.
        within: The same without each tensor's mean: what no learning rate undoes.
    """

    whole: float
    within: float


def drifts(run: Run, task: Task, weights: Path, device: str) -> dict[str, Drift]:
    """Measure how far the scales of a run have drifted at its end.

    The fixed scales are made again, by the run's first steps; those of the end are
    measured over as many gradients at the trained weights, which stay, on examples that
    come after the run's.

    Args:
        run: Of an optimizer with measured scales.
        task: Of its recipe.
        weights: The state_dict of the model at the end.
        device: Where it was trained.

    Returns:
        By role of parameters, as far as they have measured scales.
    """
    steps = run.recipe.steps
    count = min(GRADIENTS, steps)
    with deterministic():
        model = task.build_model(run.seed).to(device)
        fixed = _scales_after(run, task, model, range(count))
        model.load_state_dict(torch.load(weights, weights_only=True))
        last = _scales_after(run, task, model, range(steps, steps + count))
    return drifts_by_role(parameter_roles(model), fixed, last)


def drifts_by_role(
    roles: dict[str, str], fixed: dict[str, Tensor], last: dict[str, Tensor]
) -> dict[str, Drift]:
    """Compare scales.

    Args:
        roles: By name of a parameter.
        fixed: The scale of every entry, by name.
        last: The same, of the end.

    Returns:
        By role.
    """
    found: dict[str, list[Tensor]] = {}
    for name, scale in fixed.items():
        found.setdefault(roles[name], []).append((last[name] / scale).log2().flatten())
    return {
        role: Drift(_size(parts), _size([part - part.mean() for part in parts]))
        for role, parts in found.items()
    }


def _size(parts: Sequence[Tensor]) -> float:
    return float(f"{torch.cat(list(parts)).square().mean().sqrt().item():.4g}")


def _scales_after(
    run: Run, task: Task, model: nn.Module, steps: range
) -> dict[str, Tensor]:
    """Return the scale of every entry that was measured over some steps, by name.

    Steps after the run's last have a learning rate of 0.
    """
    recipe = run.recipe
    device = next(model.parameters()).device
    optimizer = build_optimizer(
        run.optimizer, model, run.lr, run.weight_decay, run.seed, run.settings
    )
    model.train()
    for step in steps:
        factor = lr_factor(run.schedule, step, recipe.steps, recipe.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = run.lr * factor if step < recipe.steps else 0.0
        model.zero_grad()
        batch = task.batch(run.seed, step, recipe.batch_size)
        parts, precision = recipe.micro_batches, recipe.precision
        accumulate(task, model, batch, parts, device, precision=precision)
        limit = recipe.clip_norm or math.inf
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
    return _measured_scales(model, optimizer)


def _measured_scales(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, param in model.named_parameters():
        entry = optimizer.state[param]
        if "num_measured" not in entry:
            continue
        scale = entry["scale"].abs()
        for axis, along in (("row_scale", (-1, 1)), ("column_scale", (1, -1))):
            if axis in entry:
                scale = scale * entry[axis].reshape(along)
        found[name] = scale
    return found
