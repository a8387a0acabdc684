"""A learning rate for one optimizer from that of another, by their first updates."""

import dataclasses
import math

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.lab.optimizers import build_optimizer, get_optimizer, set_mode
from saiopt.lab.recipe import Recipe
from saiopt.lab.task import Task
from saiopt.lab.training.accumulation import accumulate

# What AdamW is commonly begun with, where nothing is known.
USUAL_ADAMW_LR = 1e-3


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A learning rate and what it was found from.

    Args:
        optimizer: Name of the optimizer that it is for.
        lr: Proposed η.
        update: Root mean square of its update's entries, per unit of η.
        known: Name of the optimizer whose learning rate was known.
        known_lr: That learning rate.
        known_update: As ``update``.
    """

    optimizer: str
    lr: float
    update: float
    known: str
    known_lr: float
    known_update: float


class StandstillError(ValueError):
    """An optimizer does not move the model, at no learning rate."""


def known_lr_of(recipe: Recipe, known: str) -> float:
    """Return the learning rate that an optimizer is known to have on a recipe.

    Args:
        recipe: Whose swept learning rates count.
        known: Name of the optimizer.

    Returns:
        The swept one, or the usual one of AdamW.

    Raises:
        ValueError: If there is none, or no such optimizer.
    """
    get_optimizer(known)
    if known in recipe.lrs:
        return recipe.lrs[known]
    if known != "adamw":
        raise ValueError(
            f"known_lr must be given for {known}, of which no learning rate is known "
            f"on {recipe.name}"
        )
    return USUAL_ADAMW_LR


def require_rule(optimizer: str, known: str, known_lr: float, gradients: int) -> None:
    """See that a learning rate can be proposed.

    Args:
        optimizer: Name of the optimizer that needs a learning rate.
        known: Name of the one that has it.
        known_lr: Its learning rate.
        gradients: Number of batches.

    Raises:
        ValueError: If a number is out of its range, or an optimizer is unknown or has
            no updates of a given size.
    """
    if not 0 < known_lr < math.inf:
        raise ValueError(f"known_lr must be positive and finite, got {known_lr}")
    if gradients < 1:
        raise ValueError(f"gradients must be at least 1, got {gradients}")
    for name in (optimizer, known):
        if get_optimizer(name).estimates_size:
            raise ValueError(
                f"optimizer and known must not be {name}, which estimates the size of "
                "its steps while it trains"
            )


def propose(
    recipe: Recipe,
    task: Task,
    optimizer: str,
    known: str,
    known_lr: float,
    device: torch.device,
    *,
    seed: int = 0,
    gradients: int = 20,
) -> Proposal:
    """Propose the learning rate at which two optimizers first move a model equally far.

        η = η_known · rms(Δθ_known / η_known) / rms(Δθ / η)

    Δθ is the update after `gradients` batches, each with the initial weights, clipped
    as the recipe says, without decay. The first gradient alone would not do: from the
    second on a moving average keeps what batches have in common and loses their noise.

    Args:
        recipe: Task, batch size and clipping.
        task: Of the recipe.
        optimizer: Name of the optimizer that needs a learning rate.
        known: Name of the one that has it.
        known_lr: η_known > 0.
        device: Where to compute.
        seed: Of initial weights and data order.
        gradients: Number of batches, at least 1.

    Returns:
        The proposal.

    Raises:
        ValueError: As :func:`require_rule`.
        StandstillError: If an optimizer moves nothing.
    """
    require_rule(optimizer, known, known_lr, gradients)
    model = task.build_model(seed).to(device)
    # Decay is left out; the rate itself only sets where float32 rounds.
    optimizers = {
        name: build_optimizer(name, model, known_lr, 0.0, seed)
        for name in (optimizer, known)
    }
    moved = dict.fromkeys(optimizers, 0.0)
    for count in range(gradients):
        _fill_gradients(model, recipe, task, seed, count, device)
        moved = {
            name: _moved(made, model) / known_lr for name, made in optimizers.items()
        }
    for name, size in moved.items():
        if not 0 < size < math.inf:
            raise StandstillError(
                f"optimizer must move the model, got {name}, moving {size}"
            )
    ratio = moved[known] / moved[optimizer]
    return Proposal(
        optimizer, known_lr * ratio, moved[optimizer], known, known_lr, moved[known]
    )


def _fill_gradients(
    model: nn.Module,
    recipe: Recipe,
    task: Task,
    seed: int,
    step: int,
    device: torch.device,
) -> None:
    model.train()
    batch = task.batch(seed, step, recipe.batch_size)
    model.zero_grad()
    accumulate(
        task,
        model,
        batch,
        recipe.micro_batches,
        device,
        precision=recipe.precision,
    )
    limit = recipe.clip_norm or math.inf
    torch.nn.utils.clip_grad_norm_(model.parameters(), limit)


@torch.no_grad()
def _moved(optimizer: Optimizer, model: nn.Module) -> float:
    """Step, measure the root mean square of the update, and put the weights back."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.clone() for p in trained]
    set_mode(optimizer, training=True)
    optimizer.step()
    squares = 0.0
    for param, old in zip(trained, before, strict=True):
        squares += float((param - old).double().square().sum())
        param.copy_(old)
    return math.sqrt(squares / sum(p.numel() for p in trained))
