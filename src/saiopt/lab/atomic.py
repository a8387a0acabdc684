"""Files that are there whole or not at all, made by one process at a time."""

import contextlib
import errno
import fcntl
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# What reading a file of torch.save raises, and what is in it, if it is damaged or is
# another program's.
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file by a new one, or leave it as it was.

    Whenever the process or the machine stops, ``path`` holds the old bytes or the new
    ones. Where the disk is full, what was begun takes no room. Processes of one machine
    that write the same file take turns.

    Args:
        path: File to write; its folder exists.
        write: Gets the open temporary file beside ``path``.
    """
    temporary = path.with_name(path.name + ".tmp")
    with _taken(temporary) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    sync_folder(path.parent)


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[BinaryIO]:
    """Open a file for one process, empty, whatever a killed one has left in it."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _lies_at(path, file):
                file.truncate(0)
                yield file
                return


def _lies_at(path: Path, file: BinaryIO) -> bool:
    """Tell whether nobody has moved a file since it was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically.

    Args:
        path: File to write.
        value: JSON types; a number that is not finite raises.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time act; the others wait for it.

    Args:
        path: File of the lock, which is created and stays; its folder exists.

    Yields:
        Nothing.
    """
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk.

    Args:
        folder: The folder in which a file was created or replaced.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(error: BaseException | None) -> BaseException | None:
    """Find out whether an error comes from a full disk.

    Args:
        error: Any; torch and SQLite hide the system's error behind their own.

    Returns:
        The error that says so, among this one and those behind it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return error
        if "database or disk is full" in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None
