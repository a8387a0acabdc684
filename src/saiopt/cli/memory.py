"""``saiopt memory``."""

import dataclasses
from typing import Annotated

from tyro.conf import Positional, arg

from saiopt.cli.output import new_console, print_item, print_json
from saiopt.cli.refusal import refusing


@dataclasses.dataclass(frozen=True)
class Memory:
    """Show the bytes of weights, gradients and optimizer state, without training.

    Args:
        models: Names such as gpt2-xl or llama2-7b, Hugging Face config.json files, or
            package.module:callable.
        optimizers: Names as 'saiopt compare' takes them.
        dtype: Of the weights: float32, bfloat16 or float16.
        state_dtype: Of SGD-SaI's momentum: float32, bfloat16, int8 or int4.
        shards: Ranks that share each model as in FSDP; the fullest one is shown.
        json: Print JSON only, in bytes.
    """

    models: Annotated[
        Positional[tuple[str, ...]], arg(metavar="MODEL ...", help_behavior_hint="")
    ]
    optimizers: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME ...",
            help_behavior_hint="(default: adamw sgd adam-mini prodigy sgdsai)",
        ),
    ] = ()
    dtype: Annotated[
        str | None, arg(metavar="DTYPE", help_behavior_hint="(default: the model's)")
    ] = None
    state_dtype: Annotated[
        tuple[str, ...],
        arg(metavar="DTYPE ...", help_behavior_hint="(default: all four)"),
    ] = ()
    shards: Annotated[int, arg(metavar="N")] = 1
    json: Annotated[bool, arg(help_behavior_hint="")] = False

    def __call__(self) -> None:
        """Estimate and print the tables."""
        from saiopt.lab.model_memory.report import COMPARED, as_json, report_memory
        from saiopt.lab.model_memory.table import renderables
        from saiopt.optimizer.options import STATE_DTYPES

        with refusing(ValueError):
            reports = report_memory(
                self.models,
                optimizers=self.optimizers or COMPARED,
                dtype=self.dtype,
                state_dtypes=self.state_dtype or STATE_DTYPES,
                num_shards=self.shards,
            )
        if self.json:
            print_json(as_json(reports))
            return
        console = new_console()
        for item in renderables(reports):
            print_item(console, item)
