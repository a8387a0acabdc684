"""GPT-2 at its published size on long rows of tokens."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.token_files import TokenFile


class TokenLanguageModel:
    """Predict the next token.

    Args:
        config: Of the model; its ``n_positions`` is the length of an example.
        train: Tokens for training.
        held_out: Tokens that training never sees.
        held_out_examples: Examples per evaluation.

    Raises:
        ValueError: If a file is shorter than one example.
    """

    def __init__(
        self,
        config: GPT2Config,
        train: TokenFile,
        held_out: TokenFile,
        held_out_examples: int,
    ) -> None:
        self._config, self._length = config, config.n_positions + 1
        for tokens in (train, held_out):
            if tokens.count < self._length:
                raise ValueError(
                    f"task.data must have at least {self._length} tokens in each "
                    f"split, got {tokens.count}"
                )
        self._train, self._held_out = train, held_out
        self._examples = min(held_out_examples, held_out.count // self._length)
        self.fingerprint = f"{train.fingerprint}-{held_out.fingerprint}"

    def build_model(self, seed: int) -> nn.Module:
        """Build GPT-2.

        Args:
            seed: Of the initial weights.

        Returns:
            The model on the CPU.
        """
        torch.manual_seed(seed)
        return GPT2LMHeadModel._from_config(self._config)

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
        tokens = batch["tokens"]
        logits = model(input_ids=tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on stretches spread evenly over the held-out tokens.

        Args:
            model: In eval mode.

        Returns:
            ``loss`` in nats per token.
        """
        device = next(model.parameters()).device
        last = self._held_out.count - self._length
        starts = torch.arange(self._examples) * last // max(self._examples - 1, 1)
        losses = []
        for start in starts.split(4):
            tokens = self._held_out.windows(start, self._length).to(device)
            losses += [self.loss(model, {"tokens": tokens}).item()] * len(start)
        return {"loss": sum(losses) / len(losses)}
