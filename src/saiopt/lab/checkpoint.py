"""Everything that a run needs to go on as if it had never stopped."""

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.lab.atomic import write_atomically
from saiopt.lab.ranks import ALONE, Ranks, gathered, load_model, load_optimizer
from saiopt.lab.run_folder import RunFolderError


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
        "rng": torch.get_rng_state(),
        "position": dataclasses.asdict(position),
    }
    if torch.cuda.is_available():
        content["cuda_rng"] = torch.cuda.get_rng_state_all()
    ranks.on_first(
        lambda: write_atomically(path, lambda file: torch.save(content, file))
    )


def load(path: Path, model: nn.Module, optimizer: Optimizer) -> Position:
    """Bring a model, an optimizer and the random generators back.

    Args:
        path: Written by :func:`save`.
        model: Built like the one that was saved.
        optimizer: Built like the one that was saved, on ``model``.

    Returns:
        Where the run stood.

    Raises:
        RunFolderError: If the file is corrupt or of another model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        load_model(model, content["model"])
        load_optimizer(optimizer, content["optimizer"])
        torch.set_rng_state(content["rng"])
        if "cuda_rng" in content:
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        return Position(**content["position"])
    except (
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise RunFolderError(
            f"checkpoint must be readable, got a damaged {path}; it is left as it is: "
            "remove or move its run folder to train the run again"
        ) from error
