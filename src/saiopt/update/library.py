"""Building kernel.c with the machine's C compiler, and loading it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("kernel.c")
_HEADER = Path(__file__).with_name("storage.h")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off")
_TIMEOUT_SECONDS = 120


@functools.cache
def load() -> ctypes.CDLL | str:
    """Return the compiled kernel, or the reason why there is none.

    The first call on a machine compiles it, about a second, and leaves the library
    under ``$XDG_CACHE_HOME/saiopt`` (``~/.cache/saiopt``); where that cannot be written
    every process compiles its own and leaves nothing behind. Its name tells the source,
    the compiler, the flags and the processor apart, so that a home directory may be
    shared between machines, and it appears there only when complete, so that processes
    may race.

    Returns:
        The library, or a sentence.
    """
    if sys.platform == "win32":
        return "the kernel is not built on Windows"
    compiler = _compiler()
    if compiler is None:
        return "there is no C compiler (none of $CC, cc, gcc and clang)"
    try:
        with _directory() as directory:
            return ctypes.CDLL(str(_built(compiler, directory)))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        return f"{compiler} failed: {lines[-1]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the kernel cannot be built or loaded: {error}"


def _compiler() -> str | None:
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if (path := shutil.which(name))), None)


def _built(compiler: str, directory: Path) -> Path:
    """Return the path of the library, compiled if it is not there yet."""
    native = _processor()
    # A library for this processor alone may only be kept under this processor's name.
    flags = [*FLAGS, "-march=native"] if native else [*FLAGS]
    flags += _torch_threads()
    kind = "\n".join((compiler, *flags, platform.machine(), native))
    source = _SOURCE.read_bytes() + _HEADER.read_bytes()
    digest = hashlib.sha256(source + kind.encode()).hexdigest()[:20]
    target = directory / f"kernel-{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / target.name
            try:
                _compile(compiler, flags, fresh)
            except subprocess.CalledProcessError:
                _compile(compiler, [*FLAGS, *_torch_threads()], fresh)
            fresh.replace(target)
    return target


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


def _compile(compiler: str, flags: list[str], output: Path) -> None:
    subprocess.run(
        [compiler, str(_SOURCE), *flags, "-o", str(output), "-lm"],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_SECONDS,
    )


def _processor() -> str:
    """Return what the processor can do, "" where the system does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    named = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(named)))


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
