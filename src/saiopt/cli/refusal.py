"""How a command says no."""

import errno
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXTRAS = (
    "diffusers",
    "matplotlib",
    "numpy",
    "optuna",
    "peft",
    "PIL",
    "rich",
    "sklearn",
    "transformers",
    "tyro",
)


class RefusalError(Exception):
    """One sentence about what the user asked for."""

    exit_code = 2


class LostError(RefusalError):
    """One sentence about a process that the run has lost."""

    exit_code = 1


@contextmanager
def refusing(
    *kinds: type[Exception], to: type[RefusalError] = RefusalError
) -> Iterator[None]:
    """Turn errors about the user's input into refusals.

    Args:
        kinds: What the library raises for bad input.
        to: What they become.

    Yields:
        Nothing.

    Raises:
        RefusalError: With the sentence of the first such error.
    """
    try:
        yield
    except kinds as error:
        raise to(str(error)) from error


@contextmanager
def refusing_full_disk() -> Iterator[None]:
    """Turn the error of a full disk into a refusal.

    Yields:
        Nothing.

    Raises:
        RefusalError: If a file could not be written for want of space.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise RefusalError(
            "the disk must have room for runs and prepared data, free some; the same "
            f"command goes on from the last checkpoint ({error})"
        ) from error


def require_extras() -> None:
    """See that the packages of the command line are there, without loading them.

    Raises:
        RefusalError: If one is missing.
    """
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise RefusalError(
            "the command line needs more packages, install them with "
            f"pip install 'saiopt[lab,plot]' (missing: {', '.join(missing)})"
        )


def require_writable(folder: Path) -> None:
    """Create a folder for runs, or see that it can be written.

    Args:
        folder: The user's ``--runs-dir``.

    Raises:
        RefusalError: If that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        raise RefusalError(
            f"runs_dir must be a folder that can be written, got {folder}"
        )
