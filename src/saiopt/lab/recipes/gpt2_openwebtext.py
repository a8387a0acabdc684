"""GPT-2 small on OpenWebText, at the paper's size."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.tasks.token_language_model import TokenLanguageModel


@dataclasses.dataclass(frozen=True)
class Gpt2OpenWebText:
    """GPT-2 of 124,439,808 parameters, without dropout.

    Args:
        data: The data set's name on the hub, or a folder of its files.
        tokenizer: A tokenizer's name on the hub, or its folder.
        context: Tokens per example.
        held_out_examples: Held-out examples per evaluation.

    Raises:
        ValueError: If a size is below 1.
    """

    data: str = "Skylion007/openwebtext"
    tokenizer: str = "openai-community/gpt2"
    context: int = 1024
    held_out_examples: int = 400

    def __post_init__(self) -> None:
        if min(self.context, self.held_out_examples) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")

    def load(self) -> TokenLanguageModel:
        """Read the texts and tokenize them, once: 18 GB in the cache folder.

        Returns:
            The task.
        """
        from transformers import GPT2Config, GPT2LMHeadModel

        from saiopt.lab.data.published_text import published_text
        from saiopt.lab.tasks.token_language_model import TokenLanguageModel

        _, train, held_out = published_text(self.data, self.tokenizer)
        config = GPT2Config(
            n_positions=self.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        return TokenLanguageModel(
            lambda: GPT2LMHeadModel._from_config(config),
            self.context,
            train,
            held_out,
            self.held_out_examples,
            evaluation_batch=4,
        )


def gpt2_openwebtext() -> Recipe:
    """Return the recipe: 491,520 tokens per step.

    The paper follows Adam-mini's settings and states neither SGD-SaI's learning rate
    nor its decay, so there is a learning rate for AdamW only. Steps, warm-up of 2000,
    learning rate and decay (0.1 at 6e-4) are nanoGPT's; 100,000 steps instead of its
    600,000 are chosen here, and the cosine ends at 0, not at a tenth. 480 examples are
    40 micro-batches of 12.

    Returns:
        The recipe.
    """
    return Recipe(
        name="gpt2-openwebtext",
        description="GPT-2 small (124 M) on OpenWebText",
        task=Gpt2OpenWebText(),
        metric=Metric("loss", "validation loss (nats per token)", False),
        steps=100_000,
        batch_size=480,
        eval_every=1000,
        checkpoint_every=1000,
        schedule="cosine",
        warmup_fraction=0.02,
        clip_norm=1.0,
        decay_per_step=6e-5,
        lrs={"adamw": 6e-4},
        micro_batches=40,
        optimizer="adamw",
        size="published",
    )
