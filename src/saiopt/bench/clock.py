"""What is measured about a piece of work: its time and its temporary memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all its work; a CPU always has.

    Args:
        device: to wait for.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time a piece of work from an idle device to an idle device.

    Args:
        work: to be called once.
        device: that it runs on.

    Returns:
        Seconds.
    """
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def peak_temporary_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Measure how far memory rises above its level before a piece of work.

    Args:
        work: to be called once.
        device: whose memory counts.

    Returns:
        Bytes; on a CPU, of what torch's allocator hands out.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler's library would announce every start and stop on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    return _peak(profile)


def _peak(profile: torch.profiler.profile) -> int:
    results = profile.profiler.kineto_results if profile.profiler else None
    events = results.events() if results else []
    changes = [e for e in events if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        level += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, level)
    return peak
