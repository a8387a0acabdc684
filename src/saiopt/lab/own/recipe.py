"""A recipe of a user's model, data, loss and metric."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saiopt.lab.own.reference import resolve
from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saiopt.lab.own.task import Data, Forward, OwnTask, Parts

_USUAL_BATCH_SIZE = 32
_UNNAMED = "own"
_NAME = re.compile(r"[\w.-]+")


@dataclasses.dataclass(frozen=True)
class OwnConfig:
    """A task's config without numbers: a user's code says everything.

    Args:
        parts: Model, data, loss and metric; no field, since it is no number.
    """

    parts: dataclasses.InitVar[Parts]

    def __post_init__(self, parts: Parts) -> None:
        object.__setattr__(self, "_parts", parts)

    def __reduce__(self) -> tuple[Callable[..., OwnConfig], tuple[object, ...]]:
        parts: Parts = self.__dict__["_parts"]
        if parts.reference is not None:
            # Another process loads the file for itself.
            return _config_at, (parts.reference,)
        return OwnConfig, (parts,)

    def load(self) -> OwnTask:
        """Ask the user's code for the data.

        Returns:
            The task.
        """
        from saiopt.lab.own.task import OwnTask

        return OwnTask(self.__dict__["_parts"])


def own_recipe(
    model: Callable[[], nn.Module],
    data: Data | Callable[[], Data],
    loss: Callable[[Any, Any], Tensor],
    metric: Callable[[Any, Any], Tensor | float] | None = None,
    *,
    held_out: Data | Callable[[], Data] | None = None,
    forward: Forward | None = None,
    higher_is_better: bool = True,
    name: str = _UNNAMED,
    steps: int = 1000,
    batch_size: int | None = None,
    lrs: Mapping[str, float] | None = None,
    **fields: Any,  # noqa: ANN401 - a recipe's
) -> Recipe:
    """Make a recipe of one's own model, data, loss and metric.

    Batches are drawn by the lab: in a new random order every epoch, which only the
    run's seed decides, so that every optimizer sees the same examples and a resumed run
    goes on with the next ones. Of a DataLoader count its dataset, ``collate_fn`` and
    batch size; what augments examples draws from generators that the lab seeds.

    Args:
        model: Builds the model, its weights drawn from torch's generator.
        data: A dataset with a length, a DataLoader of one, or a function that returns
            either.
        loss: Of outputs and targets; the mean over the examples, a 0-d tensor.
        metric: Of outputs and targets, the mean over the examples; None compares by the
            loss on held-out examples.
        held_out: As ``data``; None holds every tenth example out.
        forward: From model and batch to outputs and targets, where batches are no pairs
            of both.
        higher_is_better: Of the metric.
        name: In tables and names of folders; a file's recipe has the file's name.
        steps: Optimizer steps.
        batch_size: Examples per step; None for the DataLoader's, or 32.
        lrs: Peak learning rates by optimizer; AdamW has 0.001 where it has none.
        **fields: Further fields of :class:`saiopt.lab.recipe.Recipe`.

    Returns:
        The recipe.

    Raises:
        ValueError: If a field is out of its range.
    """
    from saiopt.lab.own.task import Parts, name_of, pair

    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be of letters, digits, . _ and -, got {name!r}")
    parts = Parts(model, data, loss, metric, held_out, forward or pair)
    measured = "loss" if metric is None else name_of(metric)
    higher = higher_is_better and metric is not None
    every = max(steps // 10, 1)
    settings = {
        "description": f"{name_of(model)} of one's own",
        "eval_every": every,
        "checkpoint_every": every,
        "schedule": "cosine",
        "warmup_fraction": 0.05,
        "clip_norm": 1.0,
        "decay_per_step": 1e-4,
        "optimizer": "adamw",
        **fields,
    }
    return Recipe(
        name=name,
        task=OwnConfig(parts),
        metric=Metric(measured, f"validation {measured}", higher),
        steps=steps,
        batch_size=batch_size or getattr(data, "batch_size", None) or _USUAL_BATCH_SIZE,
        lrs={"adamw": 1e-3, **(lrs or {})},
        **settings,
    )


def recipe_at(reference: str) -> Recipe:
    """Return the recipe that a user's file or module holds.

    Args:
        reference: ``file.py:name`` or ``package.module:name`` of a recipe, or of a
            function that returns one; ``file.py`` for its name ``recipe``.

    Returns:
        The recipe, named after the file unless it has a name.

    Raises:
        ValueError: If there is none.
    """
    if reference.endswith(".py"):
        reference += ":recipe"
    found = resolve("recipe", reference)
    made = found() if callable(found) else found
    if not isinstance(made, Recipe):
        raise ValueError(
            "recipe must be a Recipe, as saiopt.lab.own_recipe makes it, or a function "
            f"that returns one, got a {type(made).__name__} from {reference}"
        )
    if isinstance(made.task, OwnConfig):
        parts = dataclasses.replace(made.task.__dict__["_parts"], reference=reference)
        made = dataclasses.replace(made, task=OwnConfig(parts))
    return _named_after(made, reference)


def _named_after(recipe: Recipe, reference: str) -> Recipe:
    if recipe.name != _UNNAMED:
        return recipe
    place, _, name = reference.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place
    return dataclasses.replace(recipe, name=stem if name == "recipe" else name)


def _config_at(reference: str) -> OwnConfig:
    task = recipe_at(reference).task
    assert isinstance(task, OwnConfig)
    return task
