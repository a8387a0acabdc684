"""Sentences for restaurant descriptions (E2E NLG), by a GPT-2 with LoRA."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saiopt.lab.data.digits import shuffled_rows
from saiopt.lab.task import Batch
from saiopt.lab.tasks.lora import add_lora
from saiopt.lab.tasks.text_metrics import text_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

_IGNORED = -100
_EVALUATION_BATCH = 16
_BEAMS = 10
_LENGTH_PENALTY = 0.9
_LONGEST_SENTENCE = 64
MEANING, SENTENCE = "meaning_representation", "human_reference"


class DescribedMeaning:
    """Continue a meaning such as ``name[Aromi], food[Indian] |`` by a sentence.

    Args:
        model: Builds the pre-trained model.
        tokenizer: Of the model.
        train: Rows of meaning and sentence.
        held_out: The same; a meaning has several sentences.
        context: Most tokens of an example.
        rank: r of the adapters.
        alpha: Their output is scaled by alpha/r.
        dropout: Share of an adapter's inputs that training sets to zero.
        generated: Meanings for which an evaluation generates a sentence.
    """

    def __init__(
        self,
        model: "Callable[[], nn.Module]",
        tokenizer: Any,  # noqa: ANN401 - transformers has no common class of them
        train: "Dataset",
        held_out: "Dataset",
        context: int,
        rank: int,
        alpha: int,
        dropout: float,
        generated: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._context, self._generated = context, generated
        self._rank, self._alpha, self._dropout = rank, alpha, dropout
        self._train = list(zip(train[MEANING], train[SENTENCE], strict=True))
        self._held_out = list(zip(held_out[MEANING], held_out[SENTENCE], strict=True))
        self.fingerprint = f"{train._fingerprint}-{held_out._fingerprint}"

    def build_model(self, seed: int) -> nn.Module:
        """Build the pre-trained model and its adapters.

        Args:
            seed: Of the adapters' A; B is zero.

        Returns:
            The model on the CPU.
        """
        model = self._model()
        torch.manual_seed(seed)
        return add_lora(model, ("c_attn",), self._rank, self._alpha, self._dropout)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Take rows in a new random order every epoch; an epoch drops its rest.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of rows.

        Returns:
            ``tokens``, and ``targets``, which leaves out meaning and padding; both of
            shape (size, length of the longest), int64.

        Raises:
            ValueError: If there are fewer rows than ``size``.
        """
        rows = shuffled_rows(len(self._train), size, seed, step)
        return self._encoded([self._train[row] for row in rows.tolist()])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the sentences' tokens.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor in nats per token.
        """
        logits = model(input_ids=batch["tokens"]).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), batch["targets"][:, 1:].flatten())

    def weight(self, batch: Batch) -> int:
        """Count the tokens of a batch's sentences.

        Args:
            batch: From :meth:`batch`.

        Returns:
            The number of targets over which :meth:`loss` is a mean.
        """
        return int((batch["targets"][:, 1:] != _IGNORED).sum())

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on held-out rows and the metrics of generated sentences.

        Args:
            model: In eval mode.

        Returns:
            ``loss`` in nats per token; ``bleu`` and the rest of
            :func:`~saiopt.lab.tasks.text_metrics.text_metrics`.
        """
        device = next(model.parameters()).device
        total, count = 0.0, 0
        for start in range(0, len(self._held_out), _EVALUATION_BATCH):
            batch = self._encoded(self._held_out[start : start + _EVALUATION_BATCH])
            tokens = self.weight(batch)
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            total += self.loss(model, on_device).item() * tokens
            count += tokens
        return {"loss": total / count, **self._scores(model, device)}

    def _scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        references: dict[str, list[str]] = {}
        for meaning, sentence in self._held_out:
            references.setdefault(meaning, []).append(sentence)
        wanted = list(references)[: self._generated]
        sentences = [self._say(model, meaning, device) for meaning in wanted]
        return text_metrics(sentences, [references[meaning] for meaning in wanted])

    def _say(self, model: Any, meaning: str, device: torch.device) -> str:  # noqa: ANN401
        tokens = torch.tensor([self._tokens(f"{meaning} |")], device=device)
        said = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=_BEAMS,
            length_penalty=_LENGTH_PENALTY,
            no_repeat_ngram_size=4,
            do_sample=False,
            max_new_tokens=_LONGEST_SENTENCE,
            pad_token_id=self._tokenizer.eos_token_id,
            eos_token_id=self._tokenizer.eos_token_id,
        )
        new = said[0, tokens.shape[1] :]
        return self._tokenizer.decode(new, skip_special_tokens=True).strip()

    def _encoded(self, rows: list[tuple[str, str]]) -> dict[str, Tensor]:
        tokens, targets = [], []
        end = self._tokenizer.eos_token_id
        for meaning, sentence in rows:
            before = self._tokens(f"{meaning} |")
            after = [*self._tokens(f" {sentence}"), end]
            limit = self._context
            tokens.append(torch.tensor([*before, *after])[:limit])
            targets.append(torch.tensor([_IGNORED] * len(before) + after)[:limit])
        pad = nn.utils.rnn.pad_sequence
        return {
            "tokens": pad(tokens, batch_first=True, padding_value=end),
            "targets": pad(targets, batch_first=True, padding_value=_IGNORED),
        }

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
