"""Batches that are made while earlier ones are trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from saiopt.lab.task import Batch


class Loader:
    """Makes batches in threads, a few steps ahead of the one that is asked for.

    What a batch holds depends on its step alone, so that it is the same whoever makes
    it, and when.

    Args:
        make: Makes the batch of a step; called by several threads at once.
        threads: Number of threads, and of batches that are made ahead; with 0 a batch
            is made when it is asked for.
        steps: Of the run: none after these is made.

    Example:
        >>> import torch
        >>> with Loader(lambda step: {"x": torch.tensor([step])}, 2, 3) as batches:
        ...     [int(batches(step)["x"]) for step in range(3)]
        [0, 1, 2]
    """

    def __init__(self, make: Callable[[int], Batch], threads: int, steps: int) -> None:
        self._make, self._ahead, self._steps = make, threads, steps
        self._pool = ThreadPoolExecutor(threads, "loader") if threads else None
        self._waiting: dict[int, Future[Batch]] = {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; the next ones are begun.

        Args:
            step: One after the other, from any first one.

        Returns:
            The batch.

        Raises:
            Exception: Whatever making the batch raises.
        """
        if self._pool is None:
            return self._make(step)
        for coming in range(step, min(step + self._ahead + 1, self._steps)):
            if coming not in self._waiting:
                self._waiting[coming] = self._pool.submit(self._make, coming)
        return self._waiting.pop(step).result()
