"""A small Llama with a head of its own, on the sources of installed scikit-learn."""

import functools
import hashlib
import re
from collections import Counter
from pathlib import Path

import sklearn
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from saiopt.lab.data.source_text import is_held_out
from saiopt.lab.draws import generator
from saiopt.lab.task import Batch
from saiopt.lab.tasks.next_token import evenly_spread, held_out_loss, next_token_loss

_PIECE = re.compile(rb"\w+|[ ]+|\n|[^\w\s]", re.ASCII)
_VOCABULARY, _CONTEXT, _HELD_OUT = 1024, 128, 128


def _words(texts: list[bytes]) -> dict[bytes, int]:
    """Return the most frequent pieces of several bytes, with numbers above 255."""
    counts = Counter(p for text in texts for p in _PIECE.findall(text) if len(p) > 1)
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))
    return {piece: 256 + i for i, piece in enumerate(frequent[: _VOCABULARY - 256])}


def _tokens(texts: list[bytes], words: dict[bytes, int]) -> Tensor:
    """Return the texts in words, and byte by byte where there is none."""
    found: list[int] = []
    for text in texts:
        end = 0
        for match in _PIECE.finditer(text):
            found += text[end : match.start()]
            piece, end = match.group(), match.end()
            if piece in words:
                found.append(words[piece])
            else:
                found += piece
        found += text[end:]
    return torch.tensor(found)


@functools.cache
def _read() -> tuple[Tensor, Tensor, str]:
    """Return training and held-out tokens, split by whole files, and their hash."""
    root = Path(sklearn.__file__).parent
    relatives = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for relative in relatives:
        parts[is_held_out(relative)].append((root / relative).read_bytes())
    words = _words(parts[False])
    train, held_out = (_tokens(parts[side], words) for side in (False, True))
    digest = hashlib.sha256(train.numpy().tobytes() + held_out.numpy().tobytes())
    return train, held_out, digest.hexdigest()[:16]


class WordySource:
    """Predict the next word or byte of scikit-learn's source; nats per token."""

    def __init__(self) -> None:
        self._train, held_out, self.fingerprint = _read()
        starts = evenly_spread(_HELD_OUT, _CONTEXT + 1, len(held_out))
        self._held_out = held_out[starts[:, None] + torch.arange(_CONTEXT + 1)]

    def build_model(self, seed: int) -> nn.Module:
        """Build the model, its weights by the seed."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=_CONTEXT,
            tie_word_embeddings=False,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Draw windows from the training text."""
        last = len(self._train) - _CONTEXT - 1
        starts = torch.randint(last + 1, (size,), generator=generator(seed, step))
        return {"tokens": self._train[starts[:, None] + torch.arange(_CONTEXT + 1)]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the next token."""
        return next_token_loss(model, batch["tokens"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the held-out loss."""
        return {"loss": held_out_loss(model, self._held_out.split(32))}
