"""Who trains a cell, so that a dead process neither keeps nor loses one."""

import fcntl
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from optuna.trial import FrozenTrial, Trial

# A process whose lock cannot be seen counts as dead after this time without a sign of
# life.
GRACE_SECONDS = 300.0
_BEAT_SECONDS = 60.0
_HOST = platform.node()


class Claim:
    """Hold a trial until it is let go or this process dies, whichever comes first.

    The operating system drops the lock of a dead process at once; for processes that
    cannot see the lock, on other machines or with another folder, a thread writes the
    time into the trial.

    Args:
        trial: Has just been taken.
        folder: Of this machine's locks.
    """

    def __init__(self, trial: Trial, folder: Path) -> None:
        self.trial = trial
        self._path = _lock_path(folder, trial.study.study_name, trial.number)
        self._lock = self._path.open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        trial.set_user_attr("beat", time.time())
        for name, value in _place(folder).items():
            trial.set_user_attr(name, value)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go of the trial, whose result has been told."""
        self._over.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        self._lock.close()

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            # A sign of life that is lost must not be the last one: the storage may be
            # out of reach for a while.
            with suppress(Exception):
                self.trial.set_user_attr("beat", time.time())


def is_abandoned(trial: FrozenTrial, study_name: str, folder: Path) -> bool:
    """Tell whether the process that took a running trial is dead.

    Args:
        trial: In the state ``RUNNING``.
        study_name: Of its study.
        folder: Of this machine's locks.

    Returns:
        True if its lock is free, or, where its lock lies elsewhere, it is silent.
    """
    if all(trial.user_attrs.get(n) == v for n, v in _place(folder).items()):
        path = _lock_path(folder, study_name, trial.number)
        return not path.exists() or _is_free(path)
    started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - trial.user_attrs.get("beat", started) > GRACE_SECONDS


def _place(folder: Path) -> dict[str, str]:
    """Say which locks these are, in words that other processes understand."""
    return {"host": _HOST, "folder": str(folder.resolve())}


def _lock_path(folder: Path, study_name: str, number: int) -> Path:
    return folder / f"{study_name}-{number}.lock"


def _is_free(path: Path) -> bool:
    with path.open("rb") as lock:
        return _try_lock(lock)


def _try_lock(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
