"""Work in several processes, which end with the one that started them."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    """Call a function for each job, in processes where there are several workers.

    A failure is raised when what else was being made has ended and been yielded. Ctrl-C
    ends the processes at once, and so does the death of this one.

    Args:
        function: A module's.
        jobs: Its arguments, the longest job first.
        workers: Number of processes; 1 for this one.

    Yields:
        What it returns, in the order in which jobs end.

    Raises:
        BaseException: The first that the function raised.
    """
    if workers < 2:
        yield from (function(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    ear, mouth = context.Pipe(duplex=False)
    failure = None
    with (
        ProcessPoolExecutor(workers, context, _end_with_parent, (ear,)) as pool,
        # Closed before the pool waits for its processes.
        contextlib.ExitStack() as stack,
    ):
        stack.push(lambda *error: mouth.close() if error[0] else None)
        with uninterrupted():
            futures = [pool.submit(function, *job) for job in jobs]
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if future.exception() is None:
                yield future.result()
                continue
            failure = failure or future.exception()
            for other in futures:
                other.cancel()
    if failure is not None:
        raise failure


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let processes that are started in the meantime leave Ctrl-C to this one.

    A terminal tells all of them, and one that is still importing would print a
    traceback. This process is told when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(ear: Any) -> None:  # noqa: ANN401 - a connection
    """Watch for the end of a pipe, which closes with its process or before."""

    def watch() -> None:
        ear.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
