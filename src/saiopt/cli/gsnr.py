"""``saiopt gsnr``."""

import dataclasses
import math
from typing import Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json
from saiopt.cli.refusal import RefusalError, refusing
from saiopt.cli.training import Training, carry_out_all, refuse_diverged, single_run


@dataclasses.dataclass(frozen=True)
class Gsnr(Training):
    """Measure g-SNR, √n and their ratio for every block over training.

    Args:
        optimizer: What the model is trained with.
        seed: Of initial weights and data order.
        lr: Peak learning rate.
        weight_decay: Of the optimizer.
        every: Steps between measurements.
    """

    optimizer: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the recipe's)")
    ] = None
    seed: Annotated[int, arg(metavar="N")] = 0
    lr: Annotated[
        float | None, arg(metavar="LR", help_behavior_hint="(default: the recipe's)")
    ] = None
    weight_decay: Annotated[
        float | None,
        arg(
            metavar="WD",
            help_behavior_hint="(default: the recipe's decay per step, over lr)",
        ),
    ] = None
    every: Annotated[int, arg(metavar="N")] = 50

    def __call__(self) -> None:
        """Train, measure and print the table."""
        if self.every < 1:
            raise RefusalError(f"every must be at least 1, got {self.every}")
        run = single_run(self, self.optimizer, self.seed, self.lr, self.weight_decay)
        from saiopt.analysis.gsnr_rows import gsnr_summary, gsnr_table
        from saiopt.lab.measurement.gsnr import measure_gsnr, rows_as_json

        with refusing(ValueError):
            run = dataclasses.replace(run, gsnr_every=self.every)
        measured = carry_out_all(
            self, [run], lambda runs, *rest: measure_gsnr(runs[0], *rest)
        )
        if self.json:
            print_json(rows_as_json(measured.rows))
        else:
            console = new_console()
            # A log has lines of any length.
            width = console.width if console.is_terminal else math.inf
            console.print()
            console.print(gsnr_table(measured.rows, width), soft_wrap=True)
            console.print()
            console.print(gsnr_summary(measured.rows), soft_wrap=True)
            console.print(f"Plot and rows: {measured.folder}/", soft_wrap=True)
        refuse_diverged([measured.outcome])
