"""GPT-2 from transformers' config on bytes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config

from saiopt.lab.draws import generator
from saiopt.lab.stdlib_source import SourceText
from saiopt.lab.task import Batch
from saiopt.lab.tasks.next_token import (
    evenly_spread,
    held_out_loss,
    next_token_loss,
)

if TYPE_CHECKING:
    from saiopt.lab.recipes.gpt_stdlib import GptStdlib

_VOCABULARY = 256
_EVALUATION_BATCH = 32


class ByteLanguageModel:
    """Predict the next byte of a text; the vocabulary is the 256 bytes.

    Args:
        config: Sizes.
        text: Training and held-out text.
    """

    def __init__(self, config: "GptStdlib", text: SourceText) -> None:
        self.config = config
        self.fingerprint = text.fingerprint
        self._train = _as_bytes(text.train)
        self._held_out = _windows(
            _as_bytes(text.held_out), config.context, config.held_out_examples
        )

    def build_model(self, seed: int) -> nn.Module:
        """Build GPT-2 with tied embeddings and without dropout.

        Args:
            seed: Of the initial weights.

        Returns:
            The model on the CPU.
        """
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=_VOCABULARY,
            n_positions=self.config.context,
            n_embd=self.config.n_embd,
            n_layer=self.config.n_layer,
            n_head=self.config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Draw windows from the training text.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of windows.

        Returns:
            ``bytes``, shape (size, context + 1), dtype int64.
        """
        length = self.config.context + 1
        starts = torch.randint(
            self._train.numel() - length + 1, (size,), generator=generator(seed, step)
        )
        rows = starts[:, None] + torch.arange(length)
        return {"bytes": self._train[rows].long()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the next byte.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor in nats per byte.
        """
        return next_token_loss(model, batch["bytes"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on windows spread evenly over the held-out files.

        Args:
            model: In eval mode.

        Returns:
            ``loss`` in nats per byte.
        """
        return {"loss": held_out_loss(model, self._held_out.split(_EVALUATION_BATCH))}


def _as_bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _windows(text: Tensor, context: int, count: int) -> Tensor:
    length = context + 1
    if not 1 <= count <= text.numel() // length:
        raise ValueError(
            "task.held_out_examples must be between 1 and "
            f"{text.numel() // length}, got {count}"
        )
    starts = evenly_spread(count, length, text.numel())
    return text[starts[:, None] + torch.arange(length)]
