"""Random numbers that depend on named integers only."""

import hashlib

import torch


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator for a key, unrelated to those of all other keys.

    Args:
        key: Integers such as a seed and a step.

    Returns:
        A fresh generator in a state that is a hash of the key.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
