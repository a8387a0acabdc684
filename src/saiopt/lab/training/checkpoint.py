"""Everything that a run needs to go on as if it had never stopped."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.lab.atomic import UNREADABLE, write_atomically
from saiopt.lab.draws import seed_of
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run_folder import RunFolderError
from saiopt.lab.training.shards import gathered, load_model, load_optimizer


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come.

    Args:
        step: Finished steps.
        log_bytes: Length of the log at that step.
        elapsed_seconds: Time spent so far, over all sessions of the run.
    """

    step: int
    log_bytes: int
    elapsed_seconds: float


def save(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    position: Position,
    ranks: Ranks = ALONE,
) -> None:
    """Write a checkpoint; a crash leaves the one before it.

    The file does not depend on the layout: any number of processes can go on from it.

    Args:
        path: File to replace.
        model: Whose weights and buffers are kept.
        optimizer: Whose state is kept.
        position: Of the run.
        ranks: All processes gather; the first one writes.
    """
    content: dict[str, Any] = {
        "model": gathered(model.state_dict(), ranks),
        "optimizer": gathered(optimizer.state_dict(), ranks),
        "generators": ranks.collect(_generators(_device(model))),
        "position": dataclasses.asdict(position),
    }
    ranks.on_first(
        lambda: write_atomically(path, lambda file: torch.save(content, file))
    )


def save_weights(path: Path, model: nn.Module, ranks: Ranks = ALONE) -> None:
    """Write a model's weights and buffers alone, for ``load_state_dict``.

    Args:
        path: File to replace.
        model: Trained.
        ranks: All processes gather; the first one writes.
    """
    content = gathered(model.state_dict(), ranks)
    ranks.on_first(
        lambda: write_atomically(path, lambda file: torch.save(content, file))
    )


def load(
    path: Path, model: nn.Module, optimizer: Optimizer, ranks: Ranks = ALONE
) -> Position:
    """Bring a model, an optimizer and the random generators back.

    A process that was not there when the file was written draws new random numbers.

    Args:
        path: Written by :func:`save`.
        model: Built like the one that was saved.
        optimizer: Built like the one that was saved, on ``model``.
        ranks: The processes that go on, each with its own generators.

    Returns:
        Where the run stood.

    Raises:
        RunFolderError: If the file is corrupt or of another model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights, state = content["model"], content["optimizer"]
        # Older checkpoints have the state of one process on the CPU only.
        generators = content.get("generators") or [{"cpu": content["rng"]}]
        position = Position(**content["position"])
    except UNREADABLE as error:
        raise _damaged(path) from error
    if _shapes(weights) != _shapes(model.state_dict()):
        raise _damaged(path)
    load_optimizer(optimizer, state)
    load_model(model, weights)
    _set_generators(generators, ranks.rank, _device(model))
    return position


def _damaged(path: Path) -> RunFolderError:
    return RunFolderError(
        f"checkpoint must be readable, got a damaged {path}; it is left as it is: "
        "remove or move its run folder to train the run again"
    )


def _shapes(state: Mapping[str, Any]) -> dict[str, torch.Size | None]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that a model on a device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_generators(
    states: Sequence[Mapping[str, Tensor]], rank: int, device: torch.device
) -> None:
    if rank >= len(states):
        torch.manual_seed(seed_of(states[0]["cpu"].numpy().tobytes(), rank))
        return
    torch.set_rng_state(states[rank]["cpu"])
    # A run that began on a CPU has no other state.
    if device.type == "cuda" and "cuda" in states[rank]:
        torch.cuda.set_rng_state(states[rank]["cuda"], device)
