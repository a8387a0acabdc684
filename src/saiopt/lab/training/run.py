"""One training run: a recipe with an optimizer, a learning rate and a seed."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from saiopt.lab.identity import identity_hash
from saiopt.lab.optimizers import OPTIMIZERS, get_optimizer
from saiopt.lab.recipe import Recipe
from saiopt.lab.task import Packaged

# These fields of a recipe change nothing in a run's numbers.
_IRRELEVANT = (
    "description",
    "metric",
    "checkpoint_every",
    "lrs",
    "loaders",
    "optimizer",
    "size",
)
# What torch's generators take.
_SEEDS = 2**63
# Where a field has this value, a run is the same as before there was such a field.
_ADDED_LATER = {
    "micro_batches": 1,
    "gradient_release": False,
    "precision": "float32",
    "compiled": False,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained.

    Args:
        recipe: Task and schedule.
        optimizer: A name of ``optimizers.OPTIMIZERS``.
        lr: Peak learning rate η > 0.
        seed: Of initial weights and data order, at least 0.
        gsnr_every: Steps between measurements of g-SNR; 0 measures none.
        fixed_weight_decay: λ instead of the one that the recipe's decay per step gives.
        settings: Of the optimizer, instead of those that the lab gives it.

    Raises:
        ValueError: If an argument is out of its range, or does not go with the
            recipe's gradient release.
    """

    recipe: Recipe
    optimizer: str
    lr: float
    seed: int
    gsnr_every: int = 0
    fixed_weight_decay: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        known = get_optimizer(self.optimizer).settings
        for name in self.settings:
            if name not in known:
                raise ValueError(
                    f"settings must be among {', '.join(known)} for {self.optimizer}, "
                    f"got {name}"
                )
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.seed >= _SEEDS:
            raise ValueError(f"seed must be below 2^63, got {self.seed}")
        if self.gsnr_every < 0:
            raise ValueError(f"gsnr_every must be at least 0, got {self.gsnr_every}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"weight_decay must be finite and at least 0, got {self.weight_decay}"
            )
        if self.recipe.gradient_release:
            self._check_release()

    def _check_release(self) -> None:
        if not get_optimizer(self.optimizer).steps_in_backward:
            names = ", ".join(n for n, s in OPTIMIZERS.items() if s.steps_in_backward)
            raise ValueError(
                f"optimizer must be one of {names} with gradient_release, got "
                f"{self.optimizer}"
            )
        if self.gsnr_every:
            raise ValueError(
                "gsnr_every must be 0 with gradient_release, which frees gradients "
                f"before they can be measured, got {self.gsnr_every}"
            )

    @property
    def weight_decay(self) -> float:
        """The fixed λ, else the one whose decay per step, η·λ, is the recipe's.

        It is 0 for an optimizer of which no λ has a decay per step.
        """
        if self.fixed_weight_decay is not None:
            return self.fixed_weight_decay
        if get_optimizer(self.optimizer).penalizes:
            return 0.0
        return self.recipe.decay_per_step / self.lr

    @property
    def all_settings(self) -> dict[str, Any]:
        """The optimizer's settings beyond learning rate and decay."""
        return {**get_optimizer(self.optimizer).settings, **self.settings}

    @property
    def schedule(self) -> str:
        """The recipe's, unless the optimizer prescribes its own."""
        return get_optimizer(self.optimizer).schedule or self.recipe.schedule

    def describe(self) -> dict[str, Any]:
        """Return what the user chose, as JSON types."""
        recipe = dataclasses.asdict(self.recipe)
        for field, value in _ADDED_LATER.items():
            if recipe[field] == value:
                del recipe[field]
        description = {
            "recipe": {k: v for k, v in recipe.items() if k not in _IRRELEVANT},
            "optimizer": self.optimizer,
            "settings": self.all_settings,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "gsnr_every": self.gsnr_every,
        }
        # Runs without these keep the names that they have always had.
        spec = get_optimizer(self.optimizer)
        if spec.package is not None:
            description["package"] = f"{spec.package} {version(spec.package)}"
        if spec.schedule is not None:
            description["schedule"] = spec.schedule
        if spec.revision:
            description["revision"] = spec.revision
        if spec.code:
            description["code"] = spec.code
        if isinstance(self.recipe.task, Packaged):
            packages = self.recipe.task.packages
            description["packages"] = {name: version(name) for name in packages}
        # What is read back from a file has lists where this has tuples.
        return json.loads(json.dumps(description))

    def folder_name(self, numerics: dict[str, Any]) -> str:
        """Name the folder of this run.

        Args:
            numerics: Data, versions and hardware settings that determine the bits.

        Returns:
            Recipe, optimizer, seed and a hash of everything that determines the
            run's numbers.
        """
        digest = identity_hash({"run": self.describe(), "numerics": numerics})
        return f"{self.recipe.name}-{self.optimizer}-seed{self.seed}-{digest}"
