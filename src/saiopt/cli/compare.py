"""``saiopt compare``."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json, print_table
from saiopt.cli.refusal import RefusalError, refusing
from saiopt.cli.training import (
    OptimizerNames,
    Seeds,
    Training,
    carry_out_all,
    pairs,
    recipe_of,
    refuse_diverged,
)


@dataclasses.dataclass(frozen=True)
class Compare(Training):
    """Train the same model from the same seeds with several optimizers.

    Args:
        optimizers: Names.
        seeds: Of initial weights and data order.
        lr: Learning rates, such as sgdsai=0.01.
    """

    optimizers: OptimizerNames = ()
    seeds: Seeds = (0,)
    lr: Annotated[
        tuple[str, ...],
        arg(metavar="NAME=LR ...", help_behavior_hint="(default: the recipe's)"),
    ] = ()

    def __call__(self) -> None:
        """Train and print the table."""
        # Before the imports, so that a wrong name is answered at once.
        recipe = recipe_of(self)
        from saiopt.lab.compare import as_json, compare, plan
        from saiopt.lab.comparison_table import (
            comparison_table,
            difference_table,
            meaning,
        )
        from saiopt.lab.recipe import usual_optimizers

        with refusing(ValueError):
            names = self.optimizers or usual_optimizers(recipe)
            runs = plan(recipe, names, self.seeds, self._lrs())
        comparison = carry_out_all(self, runs, compare)
        if self.json:
            print_json(as_json(comparison))
        else:
            console = new_console()
            console.print()
            print_table(console, comparison_table(comparison))
            if comparison.differences.found:
                console.print()
                print_table(console, difference_table(comparison))
            for text in filter(None, [meaning(comparison)]):
                console.print(f"\n{text}", style="dim")
            for text in comparison.cautions:
                console.print(f"\n{text}", style="yellow")
            console.print(f"\nCurves and numbers: {comparison.folder}/", soft_wrap=True)
        refuse_diverged(comparison.outcomes)

    def _lrs(self) -> dict[str, float]:
        lrs = pairs("lr", self.lr)
        try:
            return {name: float(text) for name, text in lrs.items()}
        except ValueError:
            given = " ".join(self.lr)
            raise RefusalError(f"lr must be a number, got {given}") from None
