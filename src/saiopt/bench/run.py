"""Interleaved rounds over all candidates."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from saiopt.lab.model_memory.models import DTYPES

from .bandwidth import bandwidth
from .plan import Plan
from .rows import BenchRow, make_row
from .samples import Bench, Samples
from .shapes import allocate, skeleton

Observe = Callable[[str], object]


class DoesNotFitError(ValueError):
    """Tell that a model's parameters do not fit in memory."""


def run_bench(plan: Plan, observe: Observe = lambda _: None) -> list[BenchRow]:
    """Run a benchmark.

    Every round visits all candidates in a new random order, so that a machine that
    slows down slows all of them. One optimizer is alive at a time, and all step the
    same parameters. An optimizer that needs a second or more for a step takes one, in
    the first round.

    Args:
        plan: what to run.
        observe: called with a line about what is done next.

    Returns:
        A row for each candidate, also for those that did not run.

    Raises:
        ValueError: the shapes are unknown.
        DoesNotFitError: the parameters do not fit in memory.
    """
    model = skeleton(plan.shapes)
    device = torch.device(plan.device)
    _check_memory(model, plan, device)
    try:
        allocate(model, DTYPES[plan.dtype], device)
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(
            f"shapes must fit in the GPU's memory with gradients, got {plan.shapes}"
        ) from error
    bench = Bench(model, device, plan.steps)
    samples = {name: Samples() for name in plan.chosen}
    # What exists by now stays: looking through it again and again takes longer than
    # the steps of a small model.
    gc.freeze()
    for name, candidate in plan.chosen.items():
        if candidate.spec.installed:
            observe(f"try {candidate.label}")
            bench.inspect(candidate, samples[name])
        else:
            samples[name].failure = "not installed"
    speeds = _rounds(plan, bench, samples, observe)
    gc.unfreeze()
    speed = statistics.median(speeds)
    return [make_row(plan, bench, name, samples[name], speed) for name in plan.chosen]


def _rounds(
    plan: Plan, bench: Bench, samples: Mapping[str, Samples], observe: Observe
) -> list[float]:
    """Run all rounds; return the bandwidths that they measured."""
    speeds = []
    order = random.Random(0)
    names = [name for name in plan.chosen if samples[name].failure is None]
    for number in range(1, plan.rounds + 1):
        observe(f"round {number} of {plan.rounds}")
        order.shuffle(names)
        for name in names:
            speeds.append(bandwidth(bench.params, bench.device))
            found = samples[name]
            if found.failure is None and not (found.is_slow and number > 1):
                bench.sample(plan.chosen[name], samples[name])
        speeds.append(bandwidth(bench.params, bench.device))
    return speeds


def _check_memory(model: nn.Module, plan: Plan, device: torch.device) -> None:
    """Refuse shapes whose weights, gradients and two states exceed free memory."""
    entries = sum(p.numel() for p in model.parameters())
    needed = 4 * DTYPES[plan.dtype].itemsize * entries
    free = _free_bytes(device)
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"shapes must fit in free memory with two states ({needed / 2**30:.1f} of "
            f"{free / 2**30:.1f} GiB), got {plan.shapes}"
        )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        # A GPU refuses what does not fit, and the row says so.
        return None
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return next((1024 * int(w[1]) for w in lines if w[0] == "MemAvailable:"), None)
