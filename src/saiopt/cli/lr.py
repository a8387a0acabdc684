"""``saiopt lr``."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json
from saiopt.cli.refusal import refusing
from saiopt.cli.training import Choice, device_of, known_optimizers, recipe_of


@dataclasses.dataclass(frozen=True)
class Lr(Choice):
    """Propose a learning rate from another optimizer's, by the size of first updates.

    Args:
        optimizer: Needs a learning rate.
        known: Has one.
        known_lr: Its learning rate.
        gradients: Batches that the updates are of.
        seed: Of initial weights and data order.
    """

    optimizer: Annotated[str, arg(metavar="NAME")] = "sgdsai"
    known: Annotated[str, arg(metavar="NAME")] = "adamw"
    known_lr: Annotated[
        float | None,
        arg(
            metavar="LR",
            help_behavior_hint="(default: the recipe's, for adamw else 0.001)",
        ),
    ] = None
    gradients: Annotated[int, arg(metavar="N")] = 20
    seed: Annotated[int, arg(metavar="N")] = 0

    def __call__(self) -> None:
        """Measure and print."""
        recipe = recipe_of(self)
        device = device_of(self)
        from saiopt.lab.comparison.compare import prepare
        from saiopt.lab.measurement.lr_rule import (
            StandstillError,
            known_lr_of,
            propose,
            require_rule,
        )
        from saiopt.lab.training.run import Run

        names = known_optimizers([self.optimizer, self.known])
        optimizer, known = names
        with refusing(ValueError, FileNotFoundError):
            known_lr = self.known_lr
            if known_lr is None:
                known_lr = known_lr_of(recipe, known)
            require_rule(optimizer, known, known_lr, self.gradients)
            # Gradients are compared, not freed.
            whole = dataclasses.replace(recipe, gradient_release=False)
            task = prepare([Run(whole, name, known_lr, self.seed) for name in names])
        with refusing(StandstillError):
            found = propose(
                recipe,
                task,
                optimizer,
                known,
                known_lr,
                device,
                seed=self.seed,
                gradients=self.gradients,
            )
        own = recipe.lrs.get(optimizer)
        if self.json:
            print_json({**dataclasses.asdict(found), "recipe_lr": own})
            return
        console = new_console()
        console.print(
            f"{found.known} at lr {found.known_lr:g} first moves an entry of "
            f"{recipe.name} by {found.known_update * found.known_lr:.2g} (rms); "
            f"{found.optimizer} does at",
            soft_wrap=True,
        )
        console.print(f"\n  lr = {found.lr:.2g}\n")
        if own is not None:
            console.print(
                f"The recipe has {own:g} for it: a factor {found.lr / own:.2g}."
            )
