"""A causal language model on bytes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from saiopt.lab.data.source_text import SourceText
from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.tasks.next_token import (
    evenly_spread,
    held_out_loss,
    next_token_loss,
)
from saiopt.lab.tasks.seeded import SeededModel

_EVALUATION_BATCH = 32


class ByteLanguageModel(SeededModel):
    """Predict the next byte of a text; the vocabulary is the 256 bytes.

    Args:
        build: Builds the model, its weights drawn from torch's generator.
        context: Bytes that an example's last prediction sees.
        text: Training and held-out text.
        held_out_examples: Examples per evaluation.

    Raises:
        ValueError: If the held-out text is too short for so many examples.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        context: int,
        text: SourceText,
        held_out_examples: int,
    ) -> None:
        super().__init__(build)
        self._length = context + 1
        self.fingerprint = text.fingerprint
        self._train = _as_bytes(text.train)
        self._held_out = _windows(
            _as_bytes(text.held_out), self._length, held_out_examples
        )

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Draw windows from the training text.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of windows.

        Returns:
            ``bytes``, shape (size, context + 1), dtype int64.
        """
        last = self._train.numel() - self._length
        starts = torch.randint(last + 1, (size,), generator=generator(seed, step))
        rows = starts[:, None] + torch.arange(self._length)
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


def _windows(text: Tensor, length: int, count: int) -> Tensor:
    if not 1 <= count <= text.numel() // length:
        raise ValueError(
            "task.held_out_examples must be between 1 and "
            f"{text.numel() // length}, got {count}"
        )
    starts = evenly_spread(count, length, text.numel())
    return text[starts[:, None] + torch.arange(length)]
