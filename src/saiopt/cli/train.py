"""``saiopt train``."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json
from saiopt.cli.training import Training, carry_out_all, refuse_diverged, single_run


@dataclasses.dataclass(frozen=True)
class Train(Training):
    """Train one model with one optimizer.

    Args:
        optimizer: Its name.
        seed: Of initial weights and data order.
        lr: Peak learning rate.
    """

    optimizer: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the recipe's)")
    ] = None
    seed: Annotated[int, arg(metavar="N")] = 0
    lr: Annotated[
        float | None, arg(metavar="LR", help_behavior_hint="(default: the recipe's)")
    ] = None

    def __call__(self) -> None:
        """Train and print where the result is."""
        run = single_run(self, self.optimizer, self.seed, self.lr)
        from saiopt.lab.outcome import carry_out

        outcome = carry_out_all(
            self, [run], lambda runs, *rest: carry_out(runs[0], *rest)
        )
        if self.json:
            print_json({"folder": outcome.folder, **outcome.result})
        else:
            folder = self.runs_dir / outcome.folder
            new_console().print(f"Log and result: {folder}/", soft_wrap=True)
        refuse_diverged([outcome])
