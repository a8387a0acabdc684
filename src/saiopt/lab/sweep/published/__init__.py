"""Grids that others have published, for showing beside our own."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.resources import files

from saiopt.choices import must_be_known

PUBLISHED = ("vit-s16-imagenet", "resnet18-cifar10")
_NAMES = {
    "sgdsai": "SGD-SaI",
    "adamw": "AdamW",
    "adam": "Adam",
    "adam-mini": "Adam-mini",
    "sgd": "SGD",
}
# Momentum 0.9 adds a coupled penalty up to 1/(1-0.9) of what one step takes of it.
_COUPLING = {"sgd": 1 / (1 - 0.9)}


@dataclasses.dataclass(frozen=True)
class PublishedGrid:
    """A metric over learning rate and decay, of which more is better.

    Args:
        name: One of ``PUBLISHED``.
        metric: What was measured, on what.
        source: Where it was read.
        lrs: η of the grid.
        weight_decays: λ of the grid; SGD's decay is coupled there, see
            :func:`given_decay`.
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
        raise ValueError(must_be_known("published", name, PUBLISHED))
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


def given_decay(optimizer: str, published: float) -> float:
    """Return the λ with which an optimizer of the lab decays as a published one does.

    Published SGD adds λθ to the gradient, and momentum μ adds that up to λ/(1-μ). The
    lab's ``sgd`` is given what it adds up to; all others are given λ.

    Args:
        optimizer: The lab's name.
        published: λ of a grid.

    Returns:
        λ for a run, rounded to six digits.

    >>> given_decay("sgd", 0.005), given_decay("adamw", 0.005)
    (0.05, 0.005)
    """
    return float(f"{_COUPLING.get(optimizer, 1.0) * published:.6g}")


def published_decay(optimizer: str, given: float) -> float:
    """Return the published λ that stands for one of the lab's.

    Args:
        optimizer: The lab's name.
        given: λ of a run.

    Returns:
        The inverse of :func:`given_decay`, rounded to six digits.
    """
    return float(f"{given / _COUPLING.get(optimizer, 1.0):.6g}")
