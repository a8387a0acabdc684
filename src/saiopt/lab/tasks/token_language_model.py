"""A causal language model on long rows of tokens."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from saiopt.lab.data.token_files import TokenFile
from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.tasks.next_token import (
    evenly_spread,
    held_out_loss,
    next_token_loss,
)
from saiopt.lab.tasks.seeded import SeededModel


class TokenLanguageModel(SeededModel):
    """Predict the next token.

    Args:
        build: Builds the model, its weights from torch's generator or a checkpoint.
        context: Tokens that an example's last prediction sees.
        train: Tokens for training.
        held_out: Tokens that training never sees.
        held_out_examples: Examples per evaluation.
        evaluation_batch: Examples that an evaluation holds in memory at once.

    Raises:
        ValueError: If a file is shorter than one example.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        context: int,
        train: TokenFile,
        held_out: TokenFile,
        held_out_examples: int,
        evaluation_batch: int,
    ) -> None:
        super().__init__(build)
        self._length = context + 1
        for tokens in (train, held_out):
            if tokens.count < self._length:
                raise ValueError(
                    f"task.data must have at least {self._length} tokens in each "
                    f"split, got {tokens.count}"
                )
        self._train, self._held_out = train, held_out
        self._examples = min(held_out_examples, held_out.count // self._length)
        self._evaluation_batch = evaluation_batch
        self.fingerprint = f"{train.fingerprint}-{held_out.fingerprint}"

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Draw stretches from the training tokens.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of stretches.

        Returns:
            ``tokens``, shape (size, context + 1), int64.
        """
        last = self._train.count - self._length
        starts = torch.randint(last + 1, (size,), generator=generator(seed, step))
        return {"tokens": self._train.windows(starts, self._length)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the next token.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor in nats per token.
        """
        return next_token_loss(model, batch["tokens"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on stretches spread evenly over the held-out tokens.

        Args:
            model: In eval mode.

        Returns:
            ``loss`` in nats per token.
        """
        held_out, length = self._held_out, self._length
        starts = evenly_spread(self._examples, length, held_out.count)
        parts = starts.split(self._evaluation_batch)
        windows = (held_out.windows(part, length) for part in parts)
        return {"loss": held_out_loss(model, windows)}
