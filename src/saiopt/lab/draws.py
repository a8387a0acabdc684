"""Random numbers that depend on what they are named by only."""

import hashlib

import torch


def seed_of(*key: int | bytes) -> int:
    """Return a seed for a key, unrelated to those of all other keys.

    Args:
        key: Such as a run's seed and a rank.

    Returns:
        63 bits of a hash of the key.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator for a key, unrelated to those of all other keys.

    Args:
        key: Integers such as a seed and a step.

    Returns:
        A fresh generator in a state that is a hash of the key.
    """
    return torch.Generator().manual_seed(seed_of(*key))
