"""Processes that train the cells of a sweep."""

import dataclasses
import errno
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from saiopt.lab.atomic import full_disk
from saiopt.lab.own.optimizer import optimizer_names
from saiopt.lab.studies.processes import uninterrupted
from saiopt.lab.sweep.board import Board, Cell, open_storage
from saiopt.lab.sweep.plan import Sweep
from saiopt.lab.task import Task
from saiopt.lab.training.environment import numerics
from saiopt.lab.training.outcome import carry_out, code_of
from saiopt.lab.training.run_folder import RunFolderError

Announce = Callable[[Sweep, Cell], None]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a sweep is trained and recorded.

    Args:
        runs_dir: Where run folders live.
        storage: URL of the sweep's database.
        device: Where to train.
        threads: CPU threads of each process.
        own: References to the optimizers that the user brings, which other processes
            must load for themselves.
    """

    runs_dir: Path
    storage: str
    device: torch.device
    threads: int
    own: tuple[str, ...] = ()

    @property
    def locks(self) -> Path:
        """The folder of this machine's locks."""
        return self.runs_dir / ".sweeps"


def boards(sweeps: Sequence[Sweep], task: Task, place: Place) -> list[Board]:
    """Open the boards of some sweeps of one recipe.

    Args:
        sweeps: One per optimizer.
        task: Of the recipe.
        place: Of the sweep.

    Returns:
        One per sweep.

    Raises:
        ValueError: If the storage cannot be opened.
    """
    storage = open_storage(place.storage, place.locks)
    code = code_of(sweeps[0].recipe, task)
    software = _software(numerics(place.device, task.fingerprint, code))
    return [Board(sweep, software, storage, place.locks) for sweep in sweeps]


def work_off(
    sweeps: Sequence[Sweep], task: Task, place: Place, announce: Announce
) -> None:
    """Train cells until none waits.

    Args:
        sweeps: One per optimizer.
        task: Of their recipe.
        place: Of the sweep.
        announce: Told of every cell that this process has finished.

    Raises:
        RunFolderError: If a run's folder is damaged or in use.
    """
    torch.set_num_threads(place.threads)
    for board in boards(sweeps, task, place):
        while (claim := board.claim()) is not None:
            runs = board.sweep.runs(claim.trial.params)
            try:
                outcomes = [
                    carry_out(run, task, place.runs_dir, place.device, lambda _: None)
                    for run in runs
                ]
            except RunFolderError:
                board.give_up(claim)
                raise
            announce(board.sweep, board.finish(claim, outcomes))


def work_off_together(
    sweeps: Sequence[Sweep], place: Place, count: int, announce: Announce
) -> int:
    """Train cells in several processes until none waits.

    Args:
        sweeps: One per optimizer.
        place: Of the sweep.
        count: Number of processes.
        announce: Told of every finished cell.

    Returns:
        The number of processes that died before their time.

    Raises:
        RunFolderError: If a run's folder is damaged or in use.
        OSError: If a worker has found the disk full.
    """
    with uninterrupted():
        workers = dict(_started(sweeps, place, count))
    try:
        _listen(list(workers), sweeps, announce)
    except BaseException:
        for worker in workers.values():
            worker.terminate()
        raise
    finally:
        for worker in workers.values():
            worker.join()
    return sum(worker.exitcode != 0 for worker in workers.values())


def _started(
    sweeps: Sequence[Sweep], place: Place, count: int
) -> Iterator[tuple[Any, Any]]:
    context = multiprocessing.get_context("spawn")
    for _ in range(count):
        mine, theirs = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(sweeps, place, theirs), daemon=True
        )
        worker.start()
        theirs.close()
        yield mine, worker


def _listen(
    ears: list[Connection], sweeps: Sequence[Sweep], announce: Announce
) -> None:
    while ears:
        for ear in wait(ears):
            if not isinstance(ear, Connection):
                continue
            try:
                message = ear.recv()
            except EOFError:
                ears.remove(ear)
                continue
            if isinstance(message, Exception):
                raise message
            index, cell = message
            announce(sweeps[index], cell)


def _work(sweeps: Sequence[Sweep], place: Place, mouth: Connection) -> None:
    def tell(sweep: Sweep, cell: Cell) -> None:
        mouth.send((sweeps.index(sweep), cell))

    optimizer_names(list(place.own))
    try:
        work_off(sweeps, sweeps[0].recipe.task.load(), place, tell)
    except RunFolderError as error:
        mouth.send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(1)
    except Exception as error:
        full = full_disk(error)
        if full is None:
            raise
        # The database's own errors do not all survive the pipe.
        is_plain = isinstance(full, OSError)
        mouth.send(full if is_plain else OSError(errno.ENOSPC, str(full)))


def _software(numerics: Mapping[str, Any]) -> dict[str, Any]:
    names = ("data", "device", "torch", "transformers", "saiopt", "code")
    return {name: numerics[name] for name in names}
