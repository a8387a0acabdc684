"""The loss that all models of running text share."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token.

    In float32 whatever the weights' dtype: in bfloat16 the loss itself would round to
    three digits. For each token, forward and backward hold three numbers in float32 per
    entry of the vocabulary at their peak.

    Args:
        model: A causal language model of transformers.
        tokens: Shape (examples, context + 1), int64.

    Returns:
        A 0-d float32 tensor in nats per token.
    """
    # In one expression, so that logits in bfloat16 are freed before the loss.
    logits = model(input_ids=tokens[:, :-1]).logits.flatten(0, 1).float()
    return cross_entropy(logits, tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, parts: Iterable[Tensor]) -> float:
    """Return the mean loss over parts of the held-out text.

    Args:
        model: In eval mode.
        parts: Tokens as in :func:`next_token_loss`, on any device.

    Returns:
        Nats per token.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for tokens in parts:
        mean = next_token_loss(model, tokens.long().to(device))
        total += mean.item() * len(tokens)
        count += len(tokens)
    return total / count


def evenly_spread(count: int, length: int, available: int) -> Tensor:
    """Return where examples start that lie evenly over a text.

    Args:
        count: Number of examples, at least 1.
        length: Tokens of an example.
        available: Tokens of the text, at least ``length``.

    Returns:
        Shape (count,), int64.
    """
    return torch.arange(count) * (available - length) // max(count - 1, 1)
