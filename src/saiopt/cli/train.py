"""``saiopt train``."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json
from saiopt.cli.refusal import RefusalError
from saiopt.cli.training import (
    Tracker,
    Training,
    carry_out_all,
    refuse_diverged,
    single_run,
)


@dataclasses.dataclass(frozen=True)
class Train(Training):
    """Train one model with one optimizer.

    Args:
        optimizer: Its name, or one's own: file.py:name.
        seed: Of initial weights and data order.
        lr: Peak learning rate.
        weight_decay: Of the optimizer.
        keep_weights: Leave weights.pt in the run's folder, the model's state_dict.
        tracker: Also shows the curves while they grow; writes into the runs' folder.
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
    keep_weights: Annotated[bool, arg(help_behavior_hint="")] = False
    tracker: Tracker = None

    def __call__(self) -> None:
        """Train and print where the result is."""
        run = single_run(self, self.optimizer, self.seed, self.lr, self.weight_decay)
        from saiopt.lab.training.outcome import carry_out

        keep = self.keep_weights
        outcome = carry_out_all(
            self,
            [run],
            lambda runs, *rest: carry_out(runs[0], *rest, keep_weights=keep),
            self.tracker,
        )
        weights = self.runs_dir / outcome.folder / "weights.pt"
        if keep and not weights.exists():
            raise RefusalError(
                "keep_weights must be given before a run is finished, remove or move "
                f"{weights.parent} to train it again"
            )
        if self.json:
            print_json({"folder": outcome.folder, **outcome.result})
        else:
            folder = self.runs_dir / outcome.folder
            new_console().print(f"Log and result: {folder}/", soft_wrap=True)
        refuse_diverged([outcome])
