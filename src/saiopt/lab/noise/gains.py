"""What noise and feature learning do to the test error, judged by paired seeds."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from saiopt.lab.comparison.intervals import Estimate, estimate
from saiopt.lab.studies.ledger import Row

# A net has left the kernel regime when its weights have changed by this share.
_LEFT = 0.1
ByTemperature = Mapping[float, Mapping[int, Row]]


@dataclasses.dataclass(frozen=True)
class Gain:
    """By how much noise lowers and raises the test error at one α.

    Args:
        alpha: α.
        gain: Test error at the smallest T minus that at the best T, a mean over seeds
            with its 95 % interval. The best T is chosen for each seed on the others: on
            its own errors any grid would seem to gain.
        harm: Test error at the worst T, chosen likewise, minus that at the smallest.
    """

    alpha: float
    gain: Estimate
    harm: Estimate


@dataclasses.dataclass(frozen=True)
class WayOut:
    """A way out of the kernel regime, from the largest α and the smallest T.

    Args:
        alpha: α at its end.
        temperature: T at its end.
        weight_change: There, geometric mean over seeds.
        gain: Test error at the start minus that at the end, with its 95 % interval.
    """

    alpha: float
    temperature: float
    weight_change: float
    gain: Estimate


def gains(rows: Sequence[Row]) -> list[Gain]:
    """Judge noise at every α.

    Args:
        rows: Of one optimizer and one P.

    Returns:
        One per α with at least two temperatures at which all of two seeds or more were
        fitted.
    """
    found = []
    for alpha in sorted({row["alpha"] for row in rows}):
        fitted = _fitted(rows, alpha)
        seeds = _seeds(rows)
        if len(fitted) < 2 or len(seeds) < 2:
            continue
        lower, higher = [], []
        for seed in seeds:
            by_error = sorted(fitted, key=lambda t: _error(fitted[t], seeds, seed))
            first, best, worst = (
                fitted[t][seed]["test_error"]
                for t in (min(fitted), by_error[0], by_error[-1])
            )
            lower.append(first - best)
            higher.append(worst - first)
        found.append(Gain(alpha, estimate(lower), estimate(higher)))
    return found


def ways_out(rows: Sequence[Row]) -> tuple[WayOut, WayOut] | None:
    """Compare raising T and lowering α as ways out of the kernel regime.

    The start is the largest α at the smallest T. One way is to the smallest T of this α
    at which the weights have changed by a tenth or more, the other to the largest α
    below at which they have at the smallest T.

    Args:
        rows: Of one optimizer and one P.

    Returns:
        The warmer way and that of smaller α; None if the start is not in the kernel
        regime, or the grid has no such way.
    """
    seeds = _seeds(rows)
    alphas = sorted({row["alpha"] for row in rows}, reverse=True)
    largest = _fitted(rows, alphas[0])
    if len(seeds) < 2 or not largest:
        return None
    coldest = min(largest)
    start = largest[coldest]
    warmer = [(t, largest[t]) for t in sorted(largest) if _change(largest[t]) >= _LEFT]
    smaller = [
        (alpha, mine[coldest])
        for alpha in alphas[1:]
        if coldest in (mine := _fitted(rows, alpha)) and _change(mine[coldest]) >= _LEFT
    ]
    if _change(start) >= _LEFT or not warmer or not smaller:
        return None
    (temperature, hot), (alpha, small) = warmer[0], smaller[0]
    return (
        WayOut(alphas[0], temperature, _change(hot), _gain(start, hot, seeds)),
        WayOut(alpha, coldest, _change(small), _gain(start, small, seeds)),
    )


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def _fitted(rows: Sequence[Row], alpha: float) -> ByTemperature:
    """Return the rows by T and seed, where every seed was fitted."""
    found: dict[float, dict[int, Row]] = {}
    lost = set()
    for row in (row for row in rows if row["alpha"] == alpha):
        found.setdefault(row["temperature"], {})[row["seed"]] = row
        if row["status"] != "fitted":
            lost.add(row["temperature"])
    return {t: mine for t, mine in found.items() if t not in lost}


def _error(mine: Mapping[int, Row], seeds: Sequence[int], without: int) -> float:
    return statistics.fmean(mine[s]["test_error"] for s in seeds if s != without)


def _change(mine: Mapping[int, Row]) -> float:
    return statistics.geometric_mean(row["weight_change"] for row in mine.values())


def _gain(
    start: Mapping[int, Row], end: Mapping[int, Row], seeds: Sequence[int]
) -> Estimate:
    return estimate([start[s]["test_error"] - end[s]["test_error"] for s in seeds])
