"""Puts kernels for one kind of processor into a wheel, where SAIOPT_PREBUILT=1 asks."""

import os
import platform
import runpy
import shlex
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PrebuiltKernels(BuildHookInterface):
    """Compiles them by $CC, else cc; the wheel is then this machine's, not any's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the kernels to what the wheel will hold."""
        if os.environ.get("SAIOPT_PREBUILT") != "1" or version == "editable":
            return
        # The package itself cannot be imported without torch.
        path = Path(self.root) / "src" / "saiopt" / "update" / "prebuilt.py"
        prebuilt = runpy.run_path(str(path))
        self._scratch = tempfile.TemporaryDirectory()
        compiler = shlex.split(os.environ.get("CC") or "cc")
        for kernel in prebuilt["build"](Path(self._scratch.name), compiler):
            inside = f"saiopt/update/{prebuilt['DIRECTORY'].name}/{kernel.name}"
            build_data["force_include"][str(kernel)] = inside
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"

    def finalize(
        self, version: str, build_data: dict[str, Any], artifact_path: str
    ) -> None:
        """Remove what was compiled."""
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()
