"""One experiment apart from the optimizer and the seed."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from saiopt.choices import must_be_known

if TYPE_CHECKING:
    from saiopt.lab.task import TaskConfig

SCHEDULES = ("constant", "linear", "cosine", "step")
PRECISIONS = ("float32", "bfloat16")
_USUAL = ("sgdsai", "sgdsai-sqrt-numel", "adamw", "sgd", "sgdm-decoupled")
_COUNTS = ("steps", "batch_size", "eval_every", "checkpoint_every", "micro_batches")
# How text becomes a value, and what a message calls such a value.
_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
}
_FIXED = frozenset({"name", "description", "optimizer", "size"})


@dataclasses.dataclass(frozen=True)
class Metric:
    """The number by which a recipe's optimizers are compared.

    Args:
        name: Key in what the task's ``evaluate`` returns.
        label: Name with its unit, for tables and plots.
        higher_is_better: Whether the best value is the largest.
    """

    name: str
    label: str
    higher_is_better: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A task with its schedule and one tuned learning rate per optimizer.

    Args:
        name: Name on the command line.
        description: One line.
        task: Model and data.
        metric: What is compared.
        steps: Optimizer steps.
        batch_size: Examples per step over all ranks.
        eval_every: Steps between evaluations; the first and last are always made.
        checkpoint_every: Steps between checkpoints.
        schedule: ``"constant"``, ``"linear"`` and ``"cosine"`` to zero, or ``"step"``.
        warmup_fraction: Share of the steps with linear warm-up, in [0, 1).
        clip_norm: Largest global gradient norm; 0 clips nothing.
        decay_per_step: Share η·λ of a weight that decay takes per step at the peak
            learning rate η. Each optimizer's ``weight_decay`` λ is this over its
            learning rate, so that all of them, at all learning rates, decay alike.
        lrs: Peak learning rate by optimizer name.
        micro_batches: Parts of a batch of which a process has one at a time in memory,
            their gradients added up. Several processes share them.
        gradient_release: Whether each parameter steps during the backward pass, as soon
            as its gradient is complete, which is then freed.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast in forward passes;
            weights, gradients and the optimizer's state stay as they are.
        compiled: Whether ``torch.compile`` compiles the model.
        loaders: Threads that make the next batches while one is trained on, each of
            them a batch ahead; with 0 a batch is made when its turn comes. The batches
            are the same.
        optimizer: Name of the one that trains where none is asked for.
        size: ``"small"``, ``"medium"`` for what takes hours on any machine, or
            ``"published"`` for what needs data and machines.

    Raises:
        ValueError: If a field is out of its range.
    """

    name: str
    description: str
    task: "TaskConfig"
    metric: Metric
    steps: int
    batch_size: int
    eval_every: int
    checkpoint_every: int
    schedule: str
    warmup_fraction: float
    clip_norm: float
    decay_per_step: float
    lrs: Mapping[str, float]
    micro_batches: int = 1
    gradient_release: bool = False
    precision: str = "float32"
    compiled: bool = False
    loaders: int = 0
    optimizer: str = "sgdsai"
    size: Literal["small", "medium", "published"] = "small"

    @property
    def warmup_steps(self) -> int:
        """Whole steps of warm-up, where 0.29 of 100 are 29, not 28.999… cut to 28."""
        return int(round(self.warmup_fraction * self.steps, 6))

    def __post_init__(self) -> None:
        for field in _COUNTS:
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
        if self.loaders < 0:
            raise ValueError(f"loaders must be at least 0, got {self.loaders}")
        for field in ("clip_norm", "decay_per_step"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise ValueError(f"{field} must be finite and at least 0, got {value}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(
                f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(must_be_known("schedule", self.schedule, SCHEDULES))
        if self.precision not in PRECISIONS:
            raise ValueError(must_be_known("precision", self.precision, PRECISIONS))
        if self.batch_size % self.micro_batches:
            raise ValueError(
                "batch_size must be a multiple of micro_batches, got "
                f"{self.batch_size} and {self.micro_batches}"
            )
        if self.gradient_release:
            self._check_release()

    def _check_release(self) -> None:
        if self.clip_norm:
            raise ValueError(
                "clip_norm must be 0 with gradient_release, where no moment has all "
                f"gradients, got {self.clip_norm}"
            )
        if self.micro_batches > 1:
            raise ValueError(
                "micro_batches must be 1 with gradient_release, since adding up keeps "
                f"all gradients, got {self.micro_batches}"
            )


def usual_optimizers(recipe: Recipe) -> tuple[str, ...]:
    """Name what is compared on a recipe unless the user says otherwise.

    Args:
        recipe: Any.

    Returns:
        SGD-SaI, its controls, SGD and AdamW, as far as the recipe has learning rates,
        and the recipe's own optimizer where it has none.
    """
    return tuple(name for name in _USUAL if name in recipe.lrs) or (recipe.optimizer,)


def override(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """Replace fields of a recipe or of its task by values given as text.

    Args:
        recipe: What to start from.
        settings: Text by field name, the task's fields as ``task.<field>``.

    Returns:
        The new recipe.

    Raises:
        ValueError: If a field is unknown, not of its kind, or out of its range.
    """
    own = {k: v for k, v in settings.items() if not k.startswith("task.")}
    of_task = {k[5:]: v for k, v in settings.items() if k.startswith("task.")}
    task, changed = recipe.task, _parse(recipe.task, of_task, "task.")
    if changed:
        task = dataclasses.replace(task, **changed)
    return dataclasses.replace(recipe, task=task, **_parse(recipe, own, ""))


def settable(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that :func:`override` can replace, with their values.

    Args:
        recipe: Any.

    Returns:
        Value by name, the task's fields as ``task.<field>``.
    """
    of_task = {f"task.{name}": value for name, value in _values(recipe.task).items()}
    return _values(recipe) | of_task


def _values(target: "Recipe | TaskConfig") -> dict[str, Any]:
    values = {f.name: getattr(target, f.name) for f in dataclasses.fields(target)}
    return {
        name: value
        for name, value in values.items()
        if type(value) in _KINDS and name not in _FIXED
    }


def _parse(
    target: "Recipe | TaskConfig", settings: Mapping[str, str], prefix: str
) -> dict[str, Any]:
    kinds = {name: type(value) for name, value in _values(target).items()}
    values: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in kinds:
            names = [prefix + kind for kind in kinds]
            raise ValueError(must_be_known("field in set", prefix + name, names))
        read, kind = _KINDS[kinds[name]]
        try:
            values[name] = read(text)
        except (KeyError, ValueError):
            raise ValueError(f"{prefix}{name} must be {kind}, got {text}") from None
    return values
