"""Building kernel.c with the machine's C compiler, and loading it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

# Beside this file; those that end in .c are compiled.
SOURCES = ("kernel.c", "storage.h")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off")
_TIMEOUT_SECONDS = 120


@functools.cache
def load() -> ctypes.CDLL | str:
    """Return the compiled kernel, or the reason why there is none.

    The first call on a machine compiles it, about a second, and leaves the library
    under ``$XDG_CACHE_HOME/saiopt`` (``~/.cache/saiopt``); where that cannot be written
    every process compiles its own and leaves nothing behind. Its name tells the source,
    the compilers, the flags and the processor apart, so that a home directory may be
    shared between machines, and it appears there only when complete, so that processes
    may race.

    Compilers are tried in the order ``$CC`` (words, as in ``ccache gcc``), ``cc``,
    ``gcc`` and ``clang``, each with OpenMP and for this very processor first. A kernel
    of a compiler without OpenMP runs in one thread.

    Returns:
        The library, or a sentence.
    """
    if sys.platform == "win32":
        return "the kernel is not built on Windows"
    try:
        with _directory() as directory:
            return _kept_or_built(directory)
    except OSError as error:
        return f"the kernel cannot be built or loaded: {error}"


def _kept_or_built(directory: Path) -> ctypes.CDLL | str:
    commands = _commands()
    name = f"kernel-{_kind()}-{_digest(repr(commands).encode())}.so"
    target = directory / name
    return ctypes.CDLL(str(target)) if target.exists() else _built(commands, target)


def _kind() -> str:
    """Return what a library must be made for."""
    sources = b"".join(_path(name).read_bytes() for name in SOURCES)
    place = (_flag_sets(), platform.machine(), _processor())
    return _digest(sources + repr(place).encode())


def _path(source: str) -> Path:
    return Path(__file__).with_name(source)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _commands() -> list[list[str]]:
    """Return the compilers that there are, each as the words that start it."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return [command for name in names if (command := _command(name))]


def _command(name: str) -> list[str]:
    try:
        # A path may have spaces, though it is then no list of words.
        words = [name] if shutil.which(name) else shlex.split(name)
    except ValueError:  # A quotation without an end.
        words = name.split()
    program = shutil.which(words[0]) if words else None
    return [program, *words[1:]] if program else []


def _flag_sets() -> list[list[str]]:
    """Return the flags to try, those of the fastest kernel first."""
    one_thread = [flag for flag in FLAGS if flag != "-fopenmp"]
    # A library for this processor alone may only be kept under this processor's name.
    native = [["-march=native"], []] if _processor() else [[]]
    return [
        [*flags, *machine]
        for flags in ([*FLAGS, *_torch_threads()], one_thread)
        for machine in native
    ]


def _torch_threads() -> list[str]:
    """Return the flags that make the kernel run in torch's own pool of threads.

    A second OpenMP runtime would have a pool of its own, and the threads of torch's
    keep their processors busy for a while after each of its operators.
    """
    torch_library = Path(torch.__file__).parent / "lib"
    return [
        flag
        for runtime in sorted(torch_library.glob("libgomp*.so*"))
        for flag in ("-Wl,--as-needed", str(runtime))
    ]


def _processor() -> str:
    """Return what the processor can do, "" where the system does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    named = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(named)))


def _built(commands: Sequence[list[str]], target: Path) -> ctypes.CDLL | str:
    """Return what the first compiler that can has built, or what each of them said."""
    said = []
    for command in commands:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / target.name
            try:
                _compile(command, fresh)
                library = ctypes.CDLL(str(fresh))
            except (OSError, subprocess.SubprocessError) as error:
                said.append(f"{' '.join(command)} failed: {_message(error)}")
            else:
                fresh.replace(target)
                return ctypes.CDLL(str(target), handle=library._handle)
    return "; ".join(said) or "there is no C compiler (none of $CC, cc, gcc and clang)"


def _compile(command: list[str], output: Path) -> None:
    *better, plainest = _flag_sets()
    for flags in better:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(command, flags, output)
            return
    _run(command, plainest, output)


def _run(command: list[str], flags: list[str], output: Path) -> None:
    sources = [str(_path(name)) for name in SOURCES if name.endswith(".c")]
    subprocess.run(
        [*command, *sources, *flags, "-o", str(output), "-lm"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=_TIMEOUT_SECONDS,
    )


def _message(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took more than {_TIMEOUT_SECONDS} seconds"
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    lines = error.stderr.strip().splitlines() or ["no message"]
    # The last line of many compilers only counts the errors.
    return next((line for line in lines if "error:" in line), lines[-1])[:200]


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Yield a directory that only this user writes to, perhaps for a moment only."""
    cache = _cache_directory()
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="saiopt-") as moment:
        yield Path(moment)


def _cache_directory() -> Path | None:
    try:
        # RuntimeError: a user without a home, as in some containers.
        root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        directory = Path(root) / "saiopt"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except (OSError, RuntimeError):
        return None
