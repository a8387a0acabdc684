"""Where each optimizer's numbers may lie, and which runs a search asks for next."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SERIES = [float(f"{d}e{power}") for power in range(-8, 4) for d in (1, 2, 5)]
# Runs of a search that is no AdamW's.
BUDGET = 15
_DECAYS, _BETA2S, _EMBEDDINGS = (1.0, 5.0, 20.0), (0.95, 0.99, 0.999), (1.0, 4.0)
NUM_REFINED = 3


@dataclasses.dataclass(frozen=True)
class Point:
    """Numbers of one optimizer on one task.

    Args:
        lr: Peak learning rate.
        decay: Decay per step in units of the recipe's.
        names: Of the settings that are searched.
        values: Their values.
    """

    lr: float
    decay: float = 1.0
    names: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The optimizer's settings at this point."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def label(self) -> str:
        """What tells it from other points at the same learning rate and decay."""
        return " ".join(f"{k}={v}" for k, v in self.settings.items())


@dataclasses.dataclass(frozen=True)
class Second:
    """The number that is searched beside the learning rate.

    Args:
        setting: Its name.
        values: From which it is taken, in order.
        first: Index of the first one.
    """

    setting: str
    values: tuple[Any, ...]
    first: int


_REST = Second("rest", tuple(2.0**k for k in range(-4, 5)), 4)
_FIXED = Second("momentum", (0.9,), 0)
SECONDS = {
    "sgdsai-orthogonal": _REST,
    "sgdsai-factored": _REST,
    "muon-adamw": _REST,
    "muon-factored": _REST,
    "sgdsai": Second("momentum", (0.8, 0.9, 0.95), 1),
    "adam-mini": Second("betas", ((0.9, 0.95), (0.9, 0.99), (0.9, 0.999)), 0),
    "lion": Second("betas", ((0.9, 0.95), (0.9, 0.99), (0.95, 0.99)), 1),
    "schedule-free-adamw": Second(
        "betas", ((0.9, 0.95), (0.95, 0.95), (0.98, 0.95)), 0
    ),
    "scaled-adamw": Second("betas", ((0.7, 0.8), (0.9, 0.95)), 0),
    "factored_a": _FIXED,
    "factored_b": _FIXED,
}
Scores = Mapping[Point, tuple[float, ...]]


def wanted(
    optimizer: str,
    lr: float,
    scores: Scores,
    *,
    has_rest: bool = True,
    has_embeddings: bool = True,
) -> list[Point]:
    """Return the points that a search asks for, given what it has seen.

    Args:
        optimizer: Name.
        lr: From which it begins.
        scores: Of the points that were trained, larger is better.
        has_rest: Whether anything trains that is no hidden matrix; where nothing does,
            its multiplier is not searched.
        has_embeddings: Whether embeddings train, likewise.

    Returns:
        Points, those that were trained included; no others when the search has ended.
    """
    if optimizer == "adamw-by-role":
        return _of_adamw(lr, scores, _EMBEDDINGS if has_embeddings else (1.0,))
    second = SECONDS[optimizer]
    if second is _REST and not has_rest:
        second = Second(second.setting, (1.0,), 0)
    return _around_the_best(second, lr, scores)


def best(scores: Scores) -> Point:
    """Return the point with the best score, the smaller learning rate in a tie."""
    return max(scores, key=lambda point: (*scores[point], -point.lr))


def _around_the_best(second: Second, lr: float, scores: Scores) -> list[Point]:
    points = list(_block(second, lr, second.first))
    while scores.keys() >= set(points) and len(points) < BUDGET:
        centre = best({point: scores[point] for point in points})
        at = second.values.index(centre.values[0])
        further = [p for p in _block(second, centre.lr, at) if p not in points]
        if not further:
            break
        points += further
    return points[:BUDGET]


def _block(second: Second, lr: float, at: int) -> Iterator[Point]:
    values = second.values[max(at - 1, 0) : at + 2]
    for near, value in itertools.product(_neighbours(lr), values):
        yield Point(near, 1.0, (second.setting,), (value,))


def _neighbours(lr: float) -> list[float]:
    at = SERIES.index(lr)
    return SERIES[at - 1 : at + 2]


def _of_adamw(lr: float, scores: Scores, embeddings: Sequence[float]) -> list[Point]:
    points = [
        Point(lr, decay, ("betas", "embedding"), ((0.9, beta2), embedding))
        for decay, beta2, embedding in itertools.product(_DECAYS, _BETA2S, embeddings)
    ]
    if not scores.keys() >= set(points):
        return points
    chosen = sorted(points, key=scores.__getitem__)[-NUM_REFINED:]
    points += [
        dataclasses.replace(point, lr=near)
        for point in chosen
        for near in _neighbours(lr)
        if near != lr
    ]
    while scores.keys() >= set(points):
        centre = best({point: scores[point] for point in points})
        around = [dataclasses.replace(centre, lr=n) for n in _neighbours(centre.lr)]
        further = [p for p in around if p not in points]
        if not further:
            break
        points += further
    return points


def goodness(
    row: Mapping[str, Any] | None, metric: str, *, higher: bool
) -> tuple[float, ...]:
    """Return what is the larger the better a run was.

    Args:
        row: Of its run.
        metric: Name.
        higher: Whether a larger metric is better.

    Returns:
        Metric, then loss; -∞ if it diverged.
    """
    value = None if row is None else row.get(metric)
    if row is None or value is None:
        return (-math.inf, -math.inf)
    return (value if higher else -value, -row.get("loss", math.inf))
