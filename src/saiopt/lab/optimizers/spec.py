"""What the lab knows about one optimizer."""

import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn
from torch.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """How the lab builds one optimizer.

    Args:
        build: Called as ``build(model, lr, weight_decay, **settings)``, where the
            decoupled decay per step is to be ``lr * weight_decay``; a build that
            deviates says so.
        settings: Everything beyond learning rate and decay; part of a run's
            identity.
        source: Where the settings come from.
        label: Its name in tables of memory and of step times, where that is not the
            one by which recipes and commands know it.
        is_ours: Whether its step is SGD-SaI's.
        by_state_dtype: Whether tables of memory and of step times have a row for each
            dtype of its momentum, which ``build`` takes by name as ``state_dtype``.
        steps_in_backward: Whether a block can step while other blocks have no gradient
            yet, as gradient release wants it.
        lr_of: Optimizer whose learning rate serves where a recipe has no own one.
        package: Distribution whose version is part of a run's identity.
        schedule: Instead of the recipe's, where the method prescribes its own.
        seeded: Whether ``build`` also takes the run's ``seed``.
        penalizes: Whether λ is a penalty that the optimizer normalises. Then no λ gives
            a decay per step, and a run without a λ of its own has none.
        shards: Whether it can step parameters that FSDP2 has sharded.
        estimates_size: Whether it finds the size of its steps while it trains, and
            begins with almost none: its first updates say nothing of its learning rate.
        code: Hash of a user's code, where the optimizer is one that a user brings; part
            of a run's identity.
        revision: Counts the changes of its numbers that ``settings`` do not tell; part
            of a run's identity, so that what was trained before is not taken for it.
    """

    build: Callable[..., Optimizer]
    settings: Mapping[str, Any]
    source: str
    label: str = ""
    is_ours: bool = False
    by_state_dtype: bool = False
    steps_in_backward: bool = False
    lr_of: str | None = None
    package: str | None = None
    schedule: str | None = None
    seeded: bool = False
    penalizes: bool = False
    shards: bool = True
    estimates_size: bool = False
    revision: int = 0
    code: str = ""

    @property
    def distribution(self) -> str:
        """The package that it comes from."""
        return self.package or ("saiopt" if self.is_ours else "torch")

    @property
    def installed(self) -> str | None:
        """That package with its version, None where it is missing."""
        try:
            return f"{self.distribution} {version(self.distribution)}"
        except PackageNotFoundError:
            return None

    def make(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float,
        seed: int,
        settings: Mapping[str, Any] | None = None,
    ) -> Optimizer:
        """Build the optimizer.

        Args:
            model: What is trained.
            lr: η.
            weight_decay: λ.
            seed: Of the run, for what is drawn at random.
            settings: Instead of its own.

        Returns:
            The optimizer.

        Raises:
            ValueError: If there is none for such a model.
        """
        drawn = {"seed": seed} if self.seeded else {}
        chosen = {**self.settings, **(settings or {})}
        return self.build(model, lr, weight_decay, **chosen, **drawn)
