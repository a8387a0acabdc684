"""When does the noise of SGD change what a network learns?

Runs `saiopt noise phase` at its default size, then once more at α = 64, which reuse
finished networks, and copies rows, findings, environment and figures beside this file.
Further arguments go to the command.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from saiopt.cli import main

HERE = Path(__file__).parent


def call(arguments: list[str]) -> dict[str, Any]:
    """Run the command and return what it prints as JSON."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(["noise", "phase", "--json", *arguments])
    if code:
        sys.exit(code)
    return json.loads(output.getvalue())


def run(arguments: list[str]) -> None:
    """Carry out the study and keep its files."""
    plane = Path(call(arguments)["folder"])
    lazy = Path(call(["--alphas", "64", *arguments])["folder"])
    for suffix in ("png", "svg"):
        shutil.copyfile(plane / f"plane.{suffix}", HERE / f"plane.{suffix}")
        shutil.copyfile(plane / f"critical.{suffix}", HERE / f"critical.{suffix}")
        shutil.copyfile(lazy / f"critical.{suffix}", HERE / f"critical_64.{suffix}")
    shutil.copyfile(plane / "findings.json", HERE / "findings.json")
    shutil.copyfile(lazy / "findings.json", HERE / "findings_64.json")
    cells = plane.parent
    shutil.copyfile(cells / "environment.json", HERE / "environment.json")
    lines = (cells / "cells.jsonl").read_text().splitlines(keepends=True)
    plain = [line for line in lines if json.loads(line)["optimizer"] == "sgd"]
    (HERE / "results.jsonl").write_text("".join(plain))


if __name__ == "__main__":
    run(sys.argv[1:])
