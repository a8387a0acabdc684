"""Curves of a run in TensorBoard or Weights & Biases, while it trains."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from saiopt.lab.identity import identity_hash
from saiopt.lab.training.loop import Observer, Progress
from saiopt.lab.training.run import Run

_ENDED = frozenset({"finished", "diverged"})


class Curves(Protocol):
    """Where the numbers of one run go."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add what is known of a step.

        Args:
            step: Finished steps.
            numbers: Value by name.
        """
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class _TensorBoard:
    def __init__(self, library: ModuleType, folder: Path, run: Run, step: int) -> None:
        # What an interrupted run wrote after its last checkpoint is hidden.
        self._writer: Any = library.SummaryWriter(
            str(folder / "tensorboard" / run_name(run)), purge_step=step + 1
        )

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, library: ModuleType, folder: Path, run: Run, step: int) -> None:
        del step
        name = run_name(run)
        self._run: Any = library.init(
            project="saiopt",
            group=run.recipe.name,
            name=name,
            # By it a run that goes on is found again.
            id=name,
            resume="allow",
            config=run.describe(),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
        )

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


_Open = Callable[[ModuleType, Path, Run, int], Curves]
# Tracker: the module that it needs, the package that brings it, and its curves.
_TRACKERS: dict[str, tuple[str, str, _Open]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", _TensorBoard),
    "wandb": ("wandb", "wandb", _WeightsAndBiases),
}


def run_name(run: Run) -> str:
    """Name a run for a tracker.

    Args:
        run: The run.

    Returns:
        Recipe, optimizer, learning rate, seed, and a hash of all its settings.
    """
    settings = identity_hash(run.describe())
    return f"{run.recipe.name}-{run.optimizer}-lr{run.lr:g}-seed{run.seed}-{settings}"


@contextlib.contextmanager
def tracking(
    tracker: str | None, folder: Path, observe: Observer
) -> Iterator[Observer]:
    """Let a tracker see what an observer sees.

    Args:
        tracker: ``"tensorboard"``, which writes to ``folder/tensorboard``, or
            ``"wandb"``, which writes to ``folder/wandb``, without an account or a
            network unless ``WANDB_MODE`` says so; None for neither.
        folder: Of all runs.
        observe: The observer.

    Yields:
        What observes for both. A finished run that is read again is not tracked.

    Raises:
        ValueError: If the tracker's package is not installed.
    """
    if tracker is None:
        yield observe
        return
    module, package, opened = _TRACKERS[tracker]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"tracker must be installed, pip install {package}, got {tracker}"
        ) from error
    current: list[Curves] = []

    def see(progress: Progress) -> None:
        observe(progress)
        if progress.status == "started":
            current[:] = [opened(library, folder, progress.run, progress.step)]
        numbers = _numbers(progress)
        if numbers:
            for curves in current:
                curves.add(progress.step, numbers)
        if progress.status in _ENDED:
            close()

    def close() -> None:
        while current:
            current.pop().close()

    try:
        yield see
    finally:
        close()


def _numbers(progress: Progress) -> dict[str, float]:
    if progress.status in _ENDED:
        # Said before, by the last evaluation.
        return {}
    metrics = progress.metrics or {}
    evaluated = {f"validation/{name}": value for name, value in metrics.items()}
    return {**progress.numbers, **evaluated}
