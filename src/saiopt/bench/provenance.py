"""Which machine and which source made a row."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path

import torch


def hardware(device: torch.device) -> str:
    """Name the processor that does the work.

    Args:
        device: where the optimizers step.

    Returns:
        Such as ``NVIDIA A100-SXM4-80GB`` or ``Intel(R) Xeon(R) (2 CPUs)``.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()} ({os.cpu_count()} CPUs)"


def commit() -> str | None:
    """Return the commit of this source tree, with ``+`` if the package is changed.

    Returns:
        The first 12 digits, or None if the package is not run from its repository.
    """
    package = Path(__file__).parents[1]
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    if head is None or _git(package, "ls-files", "--error-unmatch", __file__) is None:
        return None
    return head + ("+" if _git(package, "status", "--porcelain", "--", ".") else "")


def _cpu() -> str:
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
