"""Byte-level GPT-2 on CPython's own library source."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    from saiopt.lab.data.source_text import SourceText
    from saiopt.lab.tasks.byte_language_model import ByteLanguageModel


@dataclasses.dataclass(frozen=True)
class GptStdlib:
    """A small GPT-2 as transformers builds it, and how much text it is tested on.

    Args:
        n_embd: Width.
        n_layer: Transformer blocks.
        n_head: Attention heads.
        context: Bytes per example.
        held_out_examples: Held-out examples per evaluation.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    n_embd: int = 128
    n_layer: int = 4
    n_head: int = 4
    context: int = 128
    held_out_examples: int = 128

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if self.n_embd % self.n_head:
            raise ValueError(
                "task.n_embd must be a multiple of task.n_head, got "
                f"{self.n_embd} and {self.n_head}"
            )

    def load(self) -> ByteLanguageModel:
        """Read the library source.

        Returns:
            The task.
        """
        from saiopt.lab.data.stdlib_source import read_stdlib

        return self.task_on(read_stdlib())

    def task_on(self, text: SourceText) -> ByteLanguageModel:
        """Return the task on any text, of GPT-2 without dropout.

        Args:
            text: Training and held-out text.

        Returns:
            The task.

        Raises:
            ValueError: If the held-out text is too short.
        """
        from transformers import AutoModelForCausalLM, GPT2Config

        from saiopt.lab.tasks.byte_language_model import ByteLanguageModel

        config = GPT2Config(
            vocab_size=256,
            n_positions=self.context,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        return ByteLanguageModel(
            lambda: AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa"
            ),
            self.context,
            text,
            self.held_out_examples,
        )


def gpt_stdlib() -> Recipe:
    """Return the recipe: 0.84 M parameters, 0.6 MB of text in 600 steps.

    Files are held out whole, but 12 of the 128 windows of the evaluation, all of tables
    of code pages, stand in files of the training text too.

    Returns:
        The recipe with the learning rates of ``studies/learning_rates``.
    """
    return Recipe(
        name="gpt-stdlib",
        description="GPT-2 (0.84 M) on library source, by bytes",
        task=GptStdlib(),
        metric=Metric("loss", "validation loss (nats per byte)", False),
        steps=600,
        batch_size=8,
        eval_every=50,
        checkpoint_every=100,
        schedule="cosine",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai": 5e-3,
            "sgdsai-sqrt-numel": 5e-3,
            "adamw": 2e-3,
            "sgd": 1e-1,
            "sgdm-decoupled": 5e-1,
            "sgdsai-gsnr-max": 1.0,
            "sgdsai-shuffled": 1e-1,
            "adam": 2e-3,
            "adam-mini": 2e-3,
            "adafactor": 5e-2,
            "lion": 5e-4,
            "muon": 1e-2,
            "prodigy": 2e-1,
            "schedule-free-adamw": 5e-3,
            "sgdsai-orthogonal": 2e-2,
            "sgdsai-factored": 2e-3,
            "muon-factored": 2e-2,
            "muon-adamw": 2e-2,
        },
    )
