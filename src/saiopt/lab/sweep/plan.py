"""What a sweep tries."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from saiopt.lab.identity import identity_hash
from saiopt.lab.recipe import Recipe
from saiopt.lab.training.run import Run

Sampler: TypeAlias = Literal["grid", "tpe"]
_SPAN = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One optimizer's share of a sweep: cells of learning rate and decay.

    Args:
        recipe: What is trained.
        optimizer: A name of ``OPTIMIZERS``.
        lrs: Peak learning rates η of the grid; TPE stays within their range.
        weight_decays: The same for λ; empty for the λ that gives the recipe's decay
            per step at each learning rate.
        seeds: Every cell is trained once with each.
        sampler: ``"grid"`` tries all pairs, ``"tpe"`` proposes pairs from results.
        trials: Number of cells that TPE tries.
        settings: Of the optimizer, instead of those that the lab gives it.

    Raises:
        ValueError: If a value is out of its range or comes twice.
    """

    recipe: Recipe
    optimizer: str
    lrs: tuple[float, ...]
    weight_decays: tuple[float, ...]
    seeds: tuple[int, ...]
    sampler: Sampler = "grid"
    trials: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lrs", "seeds"):
            _check_each_once(name, getattr(self, name))
        if self.weight_decays:
            _check_each_once("weight_decays", self.weight_decays)
        for cell in itertools.product(self.lrs, self.weight_decays or (None,)):
            Run(
                *(self.recipe, self.optimizer, cell[0], self.seeds[0], 0, cell[1]),
                settings=self.settings,
            )
        for seed in self.seeds:
            Run(self.recipe, self.optimizer, self.lrs[0], seed)
        if self.sampler == "tpe":
            self._check_tpe()

    def _check_tpe(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")
        if 0 in self.weight_decays:
            raise ValueError("weight_decays must be positive for tpe, got 0")

    @property
    def title(self) -> str:
        """The optimizer with the settings that are not the lab's."""
        changed = (f"{name}={_short(v)}" for name, v in self.settings.items())
        return " ".join([self.optimizer, *changed])

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of each parameter that the sweep varies."""
        values = {"lr": self.lrs, "weight_decay": self.weight_decays}
        return {name: (min(v), max(v)) for name, v in values.items() if v}

    def cells(self) -> list[dict[str, float]]:
        """List the parameters of every cell, nothing where TPE will choose them."""
        if self.sampler == "tpe":
            return [{} for _ in range(self.trials)]
        if not self.weight_decays:
            return [{"lr": lr} for lr in self.lrs]
        return [
            {"lr": lr, "weight_decay": decay}
            for lr, decay in itertools.product(self.lrs, self.weight_decays)
        ]

    def runs(self, params: Mapping[str, float]) -> list[Run]:
        """List the runs of a cell.

        Args:
            params: ``lr`` and, if the sweep varies it, ``weight_decay``.

        Returns:
            One run per seed.
        """
        lr, decay = params["lr"], params.get("weight_decay")
        return [
            Run(
                *(self.recipe, self.optimizer, lr, seed),
                fixed_weight_decay=decay,
                settings=self.settings,
            )
            for seed in self.seeds
        ]

    def study_name(self, software: Mapping[str, Any]) -> str:
        """Name the sweep in a storage that several machines share.

        Args:
            software: Data and versions; the hardware may differ between machines.

        Returns:
            Recipe, optimizer and a hash of everything that defines the cells.
        """
        described = self.runs({"lr": self.lrs[0]})[0].describe()
        varied = ("optimizer", "lr", "weight_decay", "seed", "gsnr_every")
        kept = {k: value for k, value in described.items() if k not in varied}
        space = [self.cells(), self.ranges, self.seeds, self.sampler]
        digest = identity_hash([kept, space, dict(software)])
        return f"{self.recipe.name}-{self.optimizer}-{digest}"


def lrs_around(centre: float) -> tuple[float, ...]:
    """Return five learning rates over two decades around one.

    Args:
        centre: The middle one.

    Returns:
        Rounded to two digits.

    >>> lrs_around(0.02)
    (0.002, 0.0063, 0.02, 0.063, 0.2)
    """
    return tuple(float(f"{centre * 10**power:.1e}") for power in _SPAN)


def _short(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_each_once(name: str, values: Sequence[float]) -> None:
    if not values or len(set(values)) < len(values):
        listed = " ".join(f"{value:g}" for value in values) or "none"
        raise ValueError(f"{name} must be given each once, got {listed}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{name} must be finite, got {values}")
