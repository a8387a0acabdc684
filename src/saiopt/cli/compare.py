"""``saiopt compare``."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json, print_tables
from saiopt.cli.refusal import RefusalError, refusing
from saiopt.cli.training import (
    OptimizerNames,
    Seeds,
    Tracker,
    Training,
    carry_out_all,
    known_optimizers,
    own_name,
    pairs,
    recipe_of,
    refuse_diverged,
    settings_of,
)


@dataclasses.dataclass(frozen=True)
class Compare(Training):
    """Train the same model from the same seeds with several optimizers.

    Args:
        optimizers: Names, or one's own: file.py:name.
        seeds: Of initial weights and data order.
        lr: Learning rates, such as sgdsai=0.01.
        weight_decay: The same for the weight decay.
        tracker: Also shows the curves while they grow; writes into the runs' folder.
    """

    optimizers: OptimizerNames = ()
    seeds: Seeds = (0,)
    lr: Annotated[
        tuple[str, ...],
        arg(metavar="NAME=LR ...", help_behavior_hint="(default: the recipe's)"),
    ] = ()

    weight_decay: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME=WD ...",
            help_behavior_hint="(default: the recipe's decay per step, over lr)",
        ),
    ] = ()
    tracker: Tracker = None

    def __call__(self) -> None:
        """Train and print the table."""
        # Before the imports, so that a wrong name is answered at once.
        recipe = recipe_of(self)
        from saiopt.lab.comparison.compare import as_json, compare, plan
        from saiopt.lab.comparison.comparison_table import comparison_tables
        from saiopt.lab.recipe import usual_optimizers

        names = known_optimizers(self.optimizers) or usual_optimizers(recipe)
        with refusing(ValueError):
            runs = plan(
                recipe,
                names,
                self.seeds,
                self._numbers("lr", self.lr),
                settings_of(self),
                self._numbers("weight_decay", self.weight_decay),
            )
        comparison = carry_out_all(self, runs, compare, self.tracker)
        content = as_json(comparison)
        if self.json:
            print_json(content)
        else:
            console = new_console()
            console.print()
            print_tables(console, *comparison_tables(content))
            console.print(f"\nCurves and numbers: {comparison.folder}/", soft_wrap=True)
        refuse_diverged(comparison.outcomes)

    def _numbers(self, option: str, texts: tuple[str, ...]) -> dict[str, float]:
        given = pairs(option, texts)
        try:
            return {own_name(name): float(text) for name, text in given.items()}
        except ValueError:
            listed = " ".join(texts)
            raise RefusalError(f"{option} must be a number, got {listed}") from None
