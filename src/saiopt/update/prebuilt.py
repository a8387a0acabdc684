"""Kernels that a wheel brings along, for machines without a compiler.

There is one for each level of a kind of processor, named by the sources that it was
made of. They carry no OpenMP runtime: their threads are those of torch's own, which has
to be loaded before them. A build of the package makes them without torch, so that
nothing here imports it.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Beside this file; those that end in .c are compiled.
SOURCES = ("kernel.c", "storage.h")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off")
_HERE = Path(__file__).parent
DIRECTORY = _HERE / "kernels"

_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
# What Linux must say of a processor, by kind and level (a compiler's -march), the
# fastest first.
LEVELS = {
    "x86_64": {
        "x86-64-v4": _V4,
        "x86-64-v3": _V3,
        "x86-64-v2": _V2,
        "x86-64": frozenset[str](),
    },
    "aarch64": {"armv8-a": frozenset[str]()},
}


def compiled() -> list[str]:
    """Return the paths of the sources that a compiler is given."""
    return [str(_HERE / name) for name in SOURCES if name.endswith(".c")]


def content() -> bytes:
    """Return what all sources hold."""
    return b"".join((_HERE / name).read_bytes() for name in SOURCES)


def processors() -> list[str]:
    """Return the lines in which the system describes them, none where it does not."""
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []


def digest(content: bytes) -> str:
    """Return a short name for some bytes.

    Args:
        content: the bytes.

    Returns:
        The first 80 bits of their SHA-256.
    """
    return hashlib.sha256(content).hexdigest()[:20]


def build(
    directory: Path, compiler: Sequence[str] = ("cc",), machine: str | None = None
) -> list[Path]:
    """Compile the kernels of a kind of processor.

    Args:
        directory: where to write them.
        compiler: the words that start a compiler for that kind.
        machine: the kind, a key of LEVELS; None is this machine's.

    Returns:
        Their paths, the fastest first.

    Raises:
        ValueError: no such kind is known.
        subprocess.CalledProcessError: the compiler fails.
    """
    kind = platform.machine() if machine is None else machine
    if kind not in LEVELS:
        raise ValueError(f"machine must be one of {', '.join(LEVELS)}, got {kind}")
    flags = [flag for flag in FLAGS if flag != "-shared"]
    built = []
    for level in LEVELS[kind]:
        output = directory / _name(level)
        part = output.with_suffix(".o")
        compiling = [*compiler, "-c", *flags, f"-march={level}", *compiled()]
        subprocess.run([*compiling, "-o", str(part)], check=True)
        # Linked without OpenMP, so that the loader does not ask for a second runtime.
        linking = [*compiler, "-shared", "-s", str(part), "-o", str(output), "-lm"]
        subprocess.run(linking, check=True)
        part.unlink()
        built.append(output)
    return built


def choose() -> Path | None:
    """Return the fastest kernel here that this processor can run.

    Returns:
        Its path; None where there is none for it, made of these sources.
    """
    offered = {path.name: path for path in DIRECTORY.glob("kernel-*.so")}
    if not offered:
        return None
    levels = LEVELS.get(platform.machine(), {})
    able = _abilities()
    names = [_name(level) for level, needed in levels.items() if needed <= able]
    return next((offered[name] for name in names if name in offered), None)


def _name(level: str) -> str:
    return f"kernel-{level}-{digest(content())}.so"


def _abilities() -> frozenset[str]:
    """Return what every processor of the machine can do, as Linux names it."""
    said = [line.partition(":")[2] for line in processors() if line.startswith("flags")]
    return frozenset.intersection(*(frozenset(words.split()) for words in said or [""]))
