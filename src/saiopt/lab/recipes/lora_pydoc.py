"""LoRA of a small GPT-2 from library source to documentation prose."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from saiopt.lab.recipe import Metric, Recipe
from saiopt.lab.recipes.gpt_stdlib import GptStdlib

if TYPE_CHECKING:
    from saiopt.lab.tasks.adapted import AdaptedTask

_LINEAR_LAYERS = ("c_attn", "c_proj", "c_fc")


@dataclasses.dataclass(frozen=True)
class LoraPydoc:
    """Adapters on all linear layers of the GPT-2 of ``gpt-stdlib``.

    Args:
        pretraining_steps: Steps of 8 windows on library source, with AdamW.
        rank: r, the width of an adapter.
        alpha: An adapter's output is scaled by alpha/r.
        context: Bytes per example.
        held_out_examples: Held-out examples per evaluation.

    Raises:
        ValueError: If a size is below 1.
    """

    packages: ClassVar[tuple[str, ...]] = ("peft",)

    pretraining_steps: int = 400
    rank: int = 4
    alpha: int = 32
    context: int = 128
    held_out_examples: int = 64

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")

    def load(self) -> AdaptedTask:
        """Read both texts and pre-train, or read the pre-trained weights.

        Returns:
            The task.
        """
        from saiopt.lab.data.pydoc_prose import read_prose
        from saiopt.lab.data.stdlib_source import read_stdlib
        from saiopt.lab.tasks.adapted import AdaptedTask
        from saiopt.lab.tasks.pretraining import Pretraining, pretrained

        model = GptStdlib(
            context=self.context, held_out_examples=self.held_out_examples
        )
        # The prose is a module of the library: what is adapted to must be new.
        source = model.task_on(read_stdlib(without=frozenset({"topics.py"})))
        plan = Pretraining(self.pretraining_steps, batch_size=8, lr=2e-3)
        sizes = dataclasses.asdict(dataclasses.replace(model, held_out_examples=1))
        weights = pretrained(self, source, plan, sizes)
        prose = model.task_on(read_prose())
        return AdaptedTask(prose, weights, _LINEAR_LAYERS, self.rank, self.alpha)


def lora_pydoc() -> Recipe:
    """Return the recipe: 33 thousand trained parameters, 0.1 MB of text in 120 steps.

    r and alpha are those of the published GPT-2 medium on E2E. Deviates from it in
    adapting all linear layers: attention alone would be 8 thousand parameters.

    Returns:
        The recipe with the learning rates of ``studies/learning_rates``.
    """
    return Recipe(
        name="lora-pydoc",
        description="LoRA (33 k) of that GPT-2, to prose",
        task=LoraPydoc(),
        metric=Metric("loss", "validation loss (nats per byte)", False),
        steps=120,
        batch_size=8,
        eval_every=60,
        checkpoint_every=60,
        schedule="linear",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai": 2e-2,
            "sgdsai-sqrt-numel": 2e-2,
            "adamw": 5e-3,
            "sgd": 1e-1,
            "sgdm-decoupled": 5e-1,
            "sgdsai-shuffled": 2e-2,
            "scaled-gd": 2e-1,
            "scaled-adamw": 1e-2,
            "sgdsai-frozen-a": 1e-2,
            "adamw-frozen-a": 1e-2,
            "sgdsai-orthogonal": 1e-2,
            "sgdsai-factored": 5e-3,
            "muon-factored": 1e-2,
            "muon-adamw": 1e-2,
        },
    )
