"""Small models with the kinds of parameters that real ones have."""

import torch
from torch import nn


class TinyTransformer(nn.Module):
    """Embeddings, attention, norms, biases and a scalar temperature."""

    def __init__(self, vocab=17, width=16, length=8):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, ids):
        hidden = self.tokens(ids) + self.positions
        return self.head(self.norm(self.layer(hidden))) * self.temperature


class LoRALinear(nn.Module):
    """A frozen matrix and a low-rank product whose B starts at zero."""

    def __init__(self, width=6, rank=2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width), requires_grad=False)
        self.a = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.b = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x):
        return x @ (self.weight + self.b @ self.a).T


def next_token_loss(model, ids):
    logits = model(ids)
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )


def token_batches(count, vocab=17, length=8, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(vocab, (batch, length), generator=generator) for _ in range(count)
    ]
