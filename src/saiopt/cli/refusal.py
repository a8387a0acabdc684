"""How a command says no."""

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path

_EXTRAS = ("lab", "plot")
# Where a package is not imported by its distribution's name.
_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}


class RefusalError(Exception):
    """One sentence about what the user asked for."""

    exit_code = 2


class LostError(RefusalError):
    """One sentence about a process that the run has lost."""

    exit_code = 1


class DivergedError(RefusalError):
    """One sentence about runs that have diverged."""

    exit_code = 3


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
def refusing_failures() -> Iterator[None]:
    """Turn errors of the machine that can meet any command into refusals.

    Yields:
        Nothing.

    Raises:
        RefusalError: If the disk is full, or a package cannot be imported.
    """
    from saiopt.lab.atomic import full_disk

    try:
        yield
    except ImportError as error:
        package = (error.name or "saiopt").partition(".")[0]
        if package == "saiopt":
            raise
        raise RefusalError(
            f"this command needs the package {package} in working order, install it "
            f"with {_install(_EXTRAS)} ({_first_line(error)})"
        ) from error
    except Exception as error:
        full = full_disk(error)
        if full is None:
            raise
        raise RefusalError(
            "the disk must have room for what the command writes, free some; the same "
            "command goes on from the last checkpoint, if it writes any "
            f"({_first_line(full)})"
        ) from error


def require_extras() -> None:
    """See that the packages of the command line are there, without loading them.

    Raises:
        RefusalError: If one is missing.
    """
    names = [name for extra in _EXTRAS for name in _packages(extra)]
    missing = [name for name in dict.fromkeys(names) if not _is_there(name)]
    if missing:
        raise RefusalError(
            f"the command line needs more packages, install them with "
            f"{_install(_EXTRAS)} (missing: {', '.join(missing)})"
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


def _packages(extra: str) -> list[str]:
    """List what an extra of this package installs, by its own metadata."""
    lines = [line.partition(";") for line in requires("saiopt") or []]
    wanted = re.compile(rf"extra\s*==\s*['\"]{extra}['\"]")
    names = [
        re.match(r"[\w.-]+", line) for line, _, rule in lines if wanted.search(rule)
    ]
    return [name.group() for name in names if name is not None]


def _is_there(package: str) -> bool:
    module = _MODULES.get(package, package.replace("-", "_"))
    return importlib.util.find_spec(module) is not None


def _install(extras: Sequence[str]) -> str:
    return f"pip install 'saiopt[{','.join(extras)}]'"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
