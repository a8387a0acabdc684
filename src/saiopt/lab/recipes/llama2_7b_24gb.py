"""Llama-2 7B, all weights trained, on one card of 24 GB."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from saiopt.lab.recipe import Metric, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

    from saiopt.lab.tasks.token_language_model import TokenLanguageModel

RANDOM = "random"
_DTYPES = ("bfloat16", "float32")
_SIZES = {
    "vocabulary": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}


@dataclasses.dataclass(frozen=True)
class Llama2Text:
    """Llama-2 of 6,738,415,616 parameters on a text data set.

    Args:
        data: The data set's name on the hub, or a folder of its files.
        tokenizer: A tokenizer's name on the hub, or its folder.
        checkpoint: The weights to start from: a name on the hub, or a folder;
            ``random`` for random ones.
        vocabulary: Number of tokens; this and the other sizes must be those of the
            checkpoint.
        hidden_size: Width.
        intermediate_size: Width within an MLP.
        num_layers: Depth.
        num_heads: Attention heads per layer.
        context: Tokens per example.
        dtype: Of weights and activations, ``bfloat16`` or ``float32``.
        activation_checkpointing: Whether a layer keeps its input only, and computes its
            activations again in the backward pass.
        held_out_examples: Held-out examples per evaluation, one at a time.

    Raises:
        ValueError: If a field is out of its range.
    """

    data: str = "roneneldan/TinyStories"
    tokenizer: str = "meta-llama/Llama-2-7b-hf"
    checkpoint: str = "meta-llama/Llama-2-7b-hf"
    vocabulary: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_layers: int = 32
    num_heads: int = 32
    context: int = 2048
    dtype: str = "bfloat16"
    activation_checkpointing: bool = True
    held_out_examples: int = 50

    def __post_init__(self) -> None:
        sizes = [getattr(self, name) for name in _SIZES]
        if min(*sizes, self.context, self.held_out_examples) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        # The rotary embedding turns pairs within a head.
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                "task.hidden_size must be a multiple of twice task.num_heads, got "
                f"{self.hidden_size} and {self.num_heads}"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"task.dtype must be one of {', '.join(_DTYPES)}, got {self.dtype}"
            )

    def load(self) -> TokenLanguageModel:
        """Read the texts and tokenize them, once; find the checkpoint.

        Returns:
            The task.

        Raises:
            ValueError: If the sizes are not those of the checkpoint, or the tokenizer
                has more tokens than the model.
        """
        import torch

        from saiopt.lab.data.published_text import published_text
        from saiopt.lab.tasks.token_language_model import TokenLanguageModel

        with torch.device("meta"):
            self._check_sizes(self.build().config)
        tokenizer, train, held_out = published_text(self.data, self.tokenizer)
        if len(tokenizer) > self.vocabulary:
            raise ValueError(
                f"task.tokenizer must have at most {self.vocabulary} tokens, got "
                f"{len(tokenizer)} in {self.tokenizer}"
            )
        return TokenLanguageModel(
            self.build,
            self.context,
            train,
            held_out,
            self.held_out_examples,
            evaluation_batch=1,
        )

    def build(self) -> Any:  # noqa: ANN401 - transformers has many classes of them
        """Build the model, each tensor in its dtype from the first.

        Returns:
            A causal language model on the CPU, or on the meta device under it.
        """
        import torch

        from saiopt.lab.data.checkpoints_on_hub import causal_model

        dtype = getattr(torch, self.dtype)
        model: Any
        if self.checkpoint == RANDOM:
            model = self._random_model(dtype)
        else:
            model = causal_model(self.checkpoint, "checkpoint", dtype)()
        if self.activation_checkpointing:
            # transformers has renamed this within version 5, where the old name warns.
            enable = getattr(model, "activation_checkpointing_enable", None)
            enable = enable or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        return model

    def _random_model(self, dtype: torch.dtype) -> Any:  # noqa: ANN401
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {theirs: getattr(self, ours) for ours, theirs in _SIZES.items()}
        config = LlamaConfig(
            **sizes,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            use_cache=False,
            dtype=dtype,
        )
        return LlamaForCausalLM._from_config(config)

    def _check_sizes(self, config: LlamaConfig) -> None:
        for ours, theirs in _SIZES.items():
            found = getattr(config, theirs)
            if getattr(self, ours) != found:
                raise ValueError(
                    f"task.{ours} must be that of task.checkpoint, {found}, got "
                    f"{getattr(self, ours)}"
                )


def llama2_7b_24gb() -> Recipe:
    """Return the recipe: 2048 tokens per step, 20 M in all.

    Weights in bfloat16 with stochastic rounding, momentum in int8, each gradient freed
    by its step, activations of one layer at a time: ``benchmarks/README.md`` adds up
    what that takes. The host needs 14 GB to build the model and 21 GB to go on from a
    checkpoint; the disk 42 GB for a checkpoint and its successor.

    No learning rate is known at this size: the paper measures the memory of Llama-2 7B
    and does not train it. Give one by ``--lr``. Schedule and decay (0.1 at 2e-5) are
    those of Llama-2's own fine-tuning with AdamW, at 64 examples of 4096 tokens per
    step; warm-up, steps and data are chosen here.

    Returns:
        The recipe.

    References:
        Touvron et al. 2023, "Llama 2", section 3.1.
    """
    return Recipe(
        name="llama2-7b-24gb",
        description="Llama-2 (6.7 B) on text, within 24 GiB",
        task=Llama2Text(),
        metric=Metric("loss", "validation loss (nats per token)", False),
        steps=10_000,
        batch_size=1,
        eval_every=1000,
        checkpoint_every=1000,
        schedule="cosine",
        warmup_fraction=0.03,
        clip_norm=0.0,
        decay_per_step=2e-6,
        lrs={},
        gradient_release=True,
        optimizer="sgdsai-int8",
        size="published",
    )
