"""LoRA of GPT-2 medium on E2E NLG, at the paper's size."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.described_meaning import DescribedMeaning


@dataclasses.dataclass(frozen=True)
class Gpt2mLoraE2e:
    """GPT-2 medium of 354,823,168 parameters with adapters on its attention.

    Args:
        data: The data set's name on the hub, or a folder of its files.
        model: A GPT-2's name on the hub, or its folder.
        rank: r, the width of an adapter.
        alpha: An adapter's output is scaled by alpha/r.
        dropout: Share of an adapter's inputs that training sets to zero.
        context: Most tokens of an example.
        generated: Meanings for which an evaluation generates a sentence.

    Raises:
        ValueError: If a size is below 1.
    """

    packages: ClassVar[tuple[str, ...]] = ("nltk", "peft", "rouge-score")

    data: str = "GEM/e2e_nlg"
    model: str = "openai-community/gpt2-medium"
    rank: int = 4
    alpha: int = 32
    dropout: float = 0.1
    context: int = 512
    generated: int = 630

    def __post_init__(self) -> None:
        if min(self.rank, self.alpha, self.context, self.generated) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"task.dropout must be in [0, 1), got {self.dropout}")

    def load(self) -> DescribedMeaning:
        """Read the data set, the model and its tokenizer.

        Returns:
            The task.
        """
        from saiopt.lab.data.checkpoints_on_hub import language_model
        from saiopt.lab.data.published_data import read_table
        from saiopt.lab.tasks.described_meaning import (
            MEANING,
            SENTENCE,
            DescribedMeaning,
        )
        from saiopt.lab.tasks.text_metrics import require_packages

        require_packages()
        train, held_out = (
            read_table(self.data, split, (MEANING, SENTENCE))
            for split in ("train", "test")
        )
        build, tokenizer = language_model(self.model)
        return DescribedMeaning(
            build,
            tokenizer,
            train,
            held_out,
            context=self.context,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            generated=self.generated,
        )


def gpt2m_lora_e2e() -> Recipe:
    """Return the recipe: 5 epochs of 5257 steps.

    r, alpha, batch, context, epochs, linear schedule and warm-up of 500 steps are those
    of Zhang and Pilanci 2024, as are the learning rates of SGD and AdamW; SGD-SaI's
    learning rate and decay (1e-2 at 1e-3) are the paper's. Dropout 0.1 and beam search
    of 10 are Hu et al.'s. Deviates from them in adapting keys too, which GPT-2 holds in
    one matrix with queries and values, and in leaving their label smoothing out.

    Returns:
        The recipe.
    """
    return Recipe(
        name="gpt2m-lora-e2e",
        description="LoRA of GPT-2 medium (355 M) on E2E NLG",
        task=Gpt2mLoraE2e(),
        metric=Metric("bleu", "BLEU (%)", True),
        steps=26_285,
        batch_size=8,
        eval_every=26_285,
        checkpoint_every=1000,
        schedule="linear",
        warmup_fraction=500 / 26_285,
        clip_norm=0.0,
        decay_per_step=1e-5,
        lrs={"sgdsai": 1e-3, "adamw": 2e-4, "sgd": 9e-2},
        size="published",
    )
