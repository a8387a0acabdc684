"""Batches that are made while earlier ones are trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from saiopt.lab.task import Batch


@contextlib.contextmanager
def made_ahead(
    make: Callable[[int], Batch], threads: int, steps: int
) -> Iterator[Callable[[int], Batch]]:
    """Make batches in threads, a few steps ahead of the one that is asked for.

    What a batch holds depends on its step alone, so that it is the same whoever makes
    it, and when.

    Args:
        make: Makes the batch of a step; called by several threads at once.
        threads: Number of threads, and of batches that are made ahead; with 0 a batch
            is made when it is asked for.
        steps: Of the run: none after these is made.

    Yields:
        A function that returns the batch of a step, from any first step on one after
        the other, and begins the next ones. It raises what making the batch raises.

    Example:
        >>> import torch
        >>> with made_ahead(lambda step: {"x": torch.tensor([step])}, 2, 3) as batches:
        ...     [int(batches(step)["x"]) for step in range(3)]
        [0, 1, 2]
    """
    if not threads:
        yield make
        return
    pool = ThreadPoolExecutor(threads, "loader")
    waiting: dict[int, Future[Batch]] = {}

    def take(step: int) -> Batch:
        for coming in range(step, min(step + threads + 1, steps)):
            if coming not in waiting:
                waiting[coming] = pool.submit(make, coming)
        return waiting.pop(step).result()

    try:
        yield take
    finally:
        pool.shutdown(cancel_futures=True)
