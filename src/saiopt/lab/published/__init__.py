"""Grids that others have published, for showing beside our own."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.resources import files

PUBLISHED = ("vit-s16-imagenet", "resnet18-cifar10")
_NAMES = {
    "sgdsai": "SGD-SaI",
    "adamw": "AdamW",
    "adam": "Adam",
    "adam-mini": "Adam-mini",
    "sgd": "SGD",
}


@dataclasses.dataclass(frozen=True)
class PublishedGrid:
    """A metric over learning rate and decay, of which more is better.

    Args:
        name: One of ``PUBLISHED``.
        metric: What was measured, on what.
        source: Where it was read.
        lrs: η of the grid.
        weight_decays: λ of the grid; SGD's decay is coupled there.
        values: By the lab's name of the optimizer, then by η and λ.
    """

    name: str
    metric: str
    source: str
    lrs: tuple[float, ...]
    weight_decays: tuple[float, ...]
    values: Mapping[str, Mapping[tuple[float, float], float]]


def published_grid(name: str) -> PublishedGrid:
    """Read a published grid.

    Args:
        name: One of ``PUBLISHED``.

    Returns:
        The grid.

    Raises:
        ValueError: If there is no such grid.
    """
    if name not in PUBLISHED:
        raise ValueError(f"published must be one of {', '.join(PUBLISHED)}, got {name}")
    content = json.loads((files(__name__) / f"{name}.json").read_text("utf-8"))
    decays = tuple(content["weight_decay"])
    return PublishedGrid(
        name=name,
        metric=content["metric"],
        source=content["source"],
        lrs=tuple(content["lr"]),
        weight_decays=decays,
        values={
            ours: {
                (float(lr), decay): value
                for lr, row in content["values"][theirs].items()
                for decay, value in zip(decays, row, strict=True)
            }
            for ours, theirs in _NAMES.items()
            if theirs in content["values"]
        },
    )
