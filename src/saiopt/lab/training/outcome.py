"""A run from its plan to its end."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saiopt.lab.identity import code_hash, identity_hash
from saiopt.lab.recipe import Recipe
from saiopt.lab.task import Brought, Task
from saiopt.lab.training.environment import environment, numerics
from saiopt.lab.training.loop import Observer, train
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run import Run
from saiopt.lab.training.run_folder import FollowedFolder, RunFolder

# Points of the curve of the training loss.
_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run that has ended, and its folder.

    Args:
        run: What was trained.
        folder: Name of the run's folder.
        result: The content of ``result.json``.
        log: The lines of ``log.jsonl``.
    """

    run: Run
    folder: str
    result: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Steps and values of the recipe's metric, as far as they are finite."""
        values = ((line["step"], self._metric_of(line)) for line in self.log)
        return [(step, value) for step, value in values if value is not None]

    @property
    def seconds(self) -> list[tuple[int, float]]:
        """Steps of evaluations, and the time that the run had taken by then."""
        lines = (line for line in self.log if "total_seconds" in line)
        return [(line["step"], line["total_seconds"]) for line in lines]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Steps and training losses, each the mean over some steps up to it."""
        lines = [line for line in self.log if line.get("loss") is not None]
        size = max(len(lines) // _POINTS, 1)
        groups = (lines[start : start + size] for start in range(0, len(lines), size))
        return [
            (group[-1]["step"] + 1, statistics.fmean(line["loss"] for line in group))
            for group in groups
        ]

    @property
    def value(self) -> float | None:
        """The metric at the end, None of a diverged run."""
        return self._metric_of(self.result)

    def _metric_of(self, line: Mapping[str, Any]) -> float | None:
        return line.get("metrics", {}).get(self.run.recipe.metric.name)


def code_of(recipe: Recipe, task: Task) -> str:
    """Hash the code that makes the numbers of a recipe's runs.

    Args:
        recipe: What is trained.
        task: Of the recipe.

    Returns:
        Eight hexadecimal digits.
    """
    made_by = (type(recipe.task).__module__, type(task).__module__)
    shipped = code_hash(__name__, *made_by)
    return identity_hash([shipped, task.code]) if isinstance(task, Brought) else shipped


def carry_out(
    run: Run,
    task: Task,
    runs_dir: Path,
    device: torch.device,
    observe: Observer,
    ranks: Ranks = ALONE,
    *,
    keep_weights: bool = False,
) -> Outcome:
    """Train a run, go on with it, or read it if it is finished.

    Args:
        run: What is trained.
        task: Model and data of the run's recipe.
        runs_dir: Where run folders live.
        device: Where it trains.
        observe: Told of every step.
        ranks: The processes that train together.
        keep_weights: Whether the folder gets ``weights.pt``, the model's state_dict.

    Returns:
        How it ended.

    Raises:
        RunFolderError: If the run's folder is damaged or in use.
    """
    place = (device, task.fingerprint, code_of(run.recipe, task))
    name = run.folder_name(numerics(*place))
    origin = {
        **environment(*place),
        "ranks": ranks.count,
        "strategy": ranks.strategy,
    }
    created = ranks.on_first(lambda: RunFolder(runs_dir / name, run.describe(), origin))
    folder = created or FollowedFolder(runs_dir / name)
    result = train(run, task, folder, device, observe, ranks, keep_weights=keep_weights)
    return Outcome(run, name, result, folder.log())
