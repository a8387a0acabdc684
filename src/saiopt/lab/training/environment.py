"""Where a run was made, and what of it determines the bits of its numbers."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def numerics(device: torch.device, fingerprint: str, code: str) -> dict[str, Any]:
    """Return what determines a run's bits beside its settings.

    Args:
        device: Where it trains.
        fingerprint: Hash of the task's data.
        code: From :func:`saiopt.lab.identity.code_hash`, of what makes the numbers.

    Returns:
        JSON types; part of the run's identity.
    """
    return {
        "data": fingerprint,
        "device": device.type,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "saiopt": version("saiopt"),
        "code": code,
    }


def environment(device: torch.device, fingerprint: str, code: str) -> dict[str, Any]:
    """Return what a reader of results wants to know about their origin.

    Args:
        device: Where it trains.
        fingerprint: Hash of the task's data.
        code: As in :func:`numerics`.

    Returns:
        JSON types.
    """
    return {
        **numerics(device, fingerprint, code),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "commit": commit(),
    }


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch use deterministic algorithms only, for the time of a run."""
    # cuBLAS reads this when it starts; without it matrix products raise.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def commit() -> str | None:
    """Return the commit of this source tree, with ``+`` if the package is changed.

    Returns:
        The commit, or None if the package is not run from its repository.
    """
    package = Path(__file__).parents[2]
    head = _git(package, "rev-parse", "HEAD")
    if head is None or _git(package, "ls-files", "--error-unmatch", __file__) is None:
        return None
    return head + ("+" if _git(package, "status", "--porcelain", "--", ".") else "")


def hardware(device: torch.device) -> str:
    """Name the processor of a device.

    Args:
        device: Where the work is done.

    Returns:
        Such as ``NVIDIA A100-SXM4-80GB``.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
