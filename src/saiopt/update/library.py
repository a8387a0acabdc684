"""Loading the kernel: a wheel's, or kernel.c built by the machine's C compiler."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from . import prebuilt
from .prebuilt import FLAGS, digest

_TIMEOUT_SECONDS = 120
# Well above what one compiler may take, however far two machines' clocks are apart.
_STALE_SECONDS = 3600
_DESCRIPTORS = "/proc/self/fd"


@functools.cache
def load() -> ctypes.CDLL | str:
    """Return the compiled kernel, or the reason why there is none.

    A wheel for a kind of processor brings the kernel along (:mod:`.prebuilt`). Else the
    first process on a machine compiles it, a few seconds while the others wait, and
    leaves it in ``$XDG_CACHE_HOME/saiopt`` (``~/.cache/saiopt``). Its name there tells
    the source, the compilers, the flags and the processor apart, so that a home
    directory may be shared between machines, and has the digest of its bytes: what a
    crash or a full disk left of a file is not loaded but made anew.

    Only this user may own that directory and write to it, and it is no link. Where it
    is otherwise, or cannot be written, every process compiles its own library in a
    private temporary folder and leaves nothing behind.

    Compilers are tried in the order ``$CC`` (words, as in ``ccache gcc``), ``cc``,
    ``gcc`` and ``clang``, each with OpenMP and for this very processor first. A kernel
    of a compiler without OpenMP runs in one thread.

    ``SAIOPT_COMPILE=0`` forbids to start a compiler; a library that is in the cache
    already, whichever compiler's, is loaded nevertheless.

    Returns:
        The library, or a sentence.
    """
    if sys.platform == "win32":
        return "the kernel is not built on Windows"
    brought = _prebuilt()
    if brought is not None:
        return brought
    compiles = os.environ.get("SAIOPT_COMPILE", "1")
    if compiles not in {"0", "1"}:
        return f"there is no kernel (SAIOPT_COMPILE must be 0 or 1, got {compiles!r})"
    try:
        with _cache() as cache:
            return _cached_or_built(cache, compiles=compiles == "1")
    except OSError as error:
        return f"the kernel cannot be built or loaded: {error}"


def _prebuilt() -> ctypes.CDLL | None:
    """Return the kernel that the wheel has for this processor, if it loads."""
    path = prebuilt.choose()
    if path is None:
        return None
    # A torch with another OpenMP runtime lacks what it calls.
    with contextlib.suppress(OSError):
        for runtime in _openmp_runtimes():
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))
    return None


def _cached_or_built(cache: Path | None, *, compiles: bool) -> ctypes.CDLL | str:
    commands = _commands()
    kind = f"kernel-{_kind()}"
    prefix = f"{kind}-{digest(repr(commands).encode())}"
    kernel = _cached(cache, prefix)
    if kernel is None and compiles:
        with _alone(cache):
            # Who had to wait finds it now.
            kernel = _cached(cache, prefix) or _built(commands, cache, prefix)
    elif kernel is None:
        kernel = "no kernel is in the cache and SAIOPT_COMPILE=0 forbids to build one"
    # Another compiler's is better than none.
    return (_cached(cache, kind) or kernel) if isinstance(kernel, str) else kernel


def _kind() -> str:
    """Return what a library must be made for."""
    place = (_flag_sets(), platform.machine(), _processor())
    return digest(prebuilt.content() + repr(place).encode())


def _commands() -> list[list[str]]:
    """Return the compilers that there are, each as the words that start it."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return [command for name in names if (command := _command(name))]


def _command(name: str) -> list[str]:
    # Here, for importing the package is to import nothing that torch does not.
    import shlex

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
    return [
        flag
        for runtime in _openmp_runtimes()
        for flag in ("-Wl,--as-needed", str(runtime))
    ]


def _openmp_runtimes() -> list[Path]:
    """Return what runs torch's own threads, where it is the one that GCC calls."""
    return sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))


def _processor() -> str:
    """Return what the processor can do, "" where the system does not say it."""
    named = ("model name", "flags", "Features", "CPU part")
    return "\n".join(
        dict.fromkeys(line for line in prebuilt.processors() if line.startswith(named))
    )


def _built(
    commands: Sequence[list[str]], cache: Path | None, prefix: str
) -> ctypes.CDLL | str:
    """Return what the first compiler that can has built, or what each of them said."""
    _remove_stale(Path(tempfile.gettempdir()), "saiopt-kernel-")
    said = []
    for command in commands:
        with tempfile.TemporaryDirectory(prefix="saiopt-kernel-") as scratch:
            fresh = Path(scratch) / "kernel.so"
            try:
                _compile(command, fresh)
                _keep(fresh, cache, prefix)
                return _cached(cache, prefix) or ctypes.CDLL(str(fresh))
            except (OSError, subprocess.SubprocessError) as error:
                said.append(f"{' '.join(command)} failed: {_message(error)}")
    return "; ".join(said) or "there is no C compiler (none of $CC, cc, gcc and clang)"


def _compile(command: list[str], output: Path) -> None:
    *better, plainest = _flag_sets()
    for flags in better:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(command, flags, output)
            return
    _run(command, plainest, output)


def _run(command: list[str], flags: list[str], output: Path) -> None:
    subprocess.run(
        [*command, *prebuilt.compiled(), *flags, "-o", str(output), "-lm"],
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
def _cache() -> Iterator[Path | None]:
    """Yield the cache, None where there is none that only this user writes to.

    Where the system has paths that lead through a descriptor it is such a path, so that
    nobody can put another directory in its place between a check and a use.
    """
    opened = _open_cache()
    if opened is None:
        yield None
        return
    directory, descriptor = opened
    try:
        if _is_ours(os.fstat(descriptor)):
            pinned = Path(f"{_DESCRIPTORS}/{descriptor}")
            cache = pinned if pinned.is_dir() else directory
            _remove_stale(cache, "tmp")
            yield cache
        else:
            yield None
    finally:
        os.close(descriptor)


def _open_cache() -> tuple[Path, int] | None:
    """Return the cache directory, created if need be, and a descriptor of it."""
    try:
        # RuntimeError: a user without a home, as in some containers.
        root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        directory = Path(root) / "saiopt"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link is refused: others may own what it leads through.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        return directory, os.open(directory, flags)
    except (OSError, RuntimeError):
        return None


def _is_ours(status: os.stat_result) -> bool:
    """Tell whether nobody else may write to what has this status."""
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.geteuid() and not shared


@contextlib.contextmanager
def _alone(cache: Path | None) -> Iterator[None]:
    """Let one process at a time build what the cache lacks.

    Where nothing can be kept for others, nobody waits. Without the lock the processes
    only build the same library several times.
    """
    if cache is None or not os.access(cache, os.W_OK):
        yield
        return
    # The directory is its own lock. The system frees it when a process is killed.
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for a lock, but not for ever, and not where there are no locks."""
    # Windows has no such module.
    import fcntl

    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            return
        else:
            return


def _cached(cache: Path | None, prefix: str) -> ctypes.CDLL | None:
    """Return a library that was kept under this name, if it is whole and loads."""
    for path in _kept(cache, prefix):
        # One that another machine has left may lack something here.
        with contextlib.suppress(OSError):
            if _is_whole(path):
                # The descriptor's path means nothing to a reader.
                handle = ctypes.CDLL(str(path))._handle
                return ctypes.CDLL(str(path.resolve()), handle=handle)
    return None


def _kept(cache: Path | None, prefix: str) -> list[Path]:
    return sorted(cache.glob(f"{prefix}-*.so")) if cache else []


def _is_whole(path: Path) -> bool:
    """Tell whether a file is ours and has the bytes that its name tells."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
        return False
    return path.stem.rpartition("-")[2] == digest(path.read_bytes())


def _keep(fresh: Path, cache: Path | None, prefix: str) -> None:
    """Put a library into the cache, all of it or nothing."""
    if cache is None:
        return
    content = fresh.read_bytes()
    # On a full disk, or one that cannot be written, this process goes on without.
    with contextlib.suppress(OSError):
        for path in _kept(cache, prefix):
            if not _is_whole(path):
                _remove(path)
        _write(content, cache / f"{prefix}-{digest(content)}.so")


def _write(content: bytes, path: Path) -> None:
    """Write a file that after a crash of the machine is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        fresh = Path(scratch) / path.name
        fresh.touch(mode=0o600)  # The user's mask may let the group write.
        fresh.write_bytes(content)
        _sync(fresh)
        fresh.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(directory: Path, prefix: str) -> None:
    """Remove what killed processes have left under a name of tempfile's."""
    for path in directory.glob(f"{prefix}????????"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            age = time.time() - status.st_mtime
            if age > _STALE_SECONDS and status.st_uid == os.geteuid():
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
