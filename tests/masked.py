"""A task whose loss is a mean over some of the targets."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

IGNORED = -100


class MaskedTask:
    """Tell classes of vectors apart, of which each example has some without a class."""

    fingerprint = "masked"

    def __init__(self, kept=(1, 6, 2, 3)):
        self._kept = kept

    def build_model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def batch(self, seed, step, size):
        random = torch.Generator().manual_seed(seed)
        classes = torch.randint(3, (size, 6), generator=random)
        kept = torch.tensor(self._kept)[:, None]
        return {
            "vectors": torch.randn(size, 6, 5, generator=random),
            "classes": classes.where(torch.arange(6) < kept, IGNORED),
        }

    def loss(self, model, batch):
        logits = model(batch["vectors"])
        return cross_entropy(logits.flatten(0, 1), batch["classes"].flatten())

    def weight(self, batch):
        return int((batch["classes"] != IGNORED).sum())
