"""When does the noise of SGD change what a network learns?

Runs `saiopt noise phase` at its default size, once more at α = 64, and on finer grids
for T_opt and for T_c, all of which reuse finished networks, and copies rows, findings,
environment and figures beside this file. Further arguments go to the command.
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


def powers(first: int, last: int, step: int = 1) -> list[str]:
    """Return powers of two as arguments."""
    return [str(2.0**power) for power in range(first, last + 1, step)]


FINE_BEST = [
    *("--alphas", *powers(-8, -1)),
    *("--temperatures", *powers(-15, -4)),
    *("--sizes", "256", "--seeds", "6"),
]
FINE_CRITICAL = [
    *("--alphas", "64"),
    *("--temperatures", *powers(-13, -4)),
    *("--sizes", "64", "128", "256", "512", "1024"),
    *("--seeds", "8", "--max-steps", "80000"),
]


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
    best = Path(call([*FINE_BEST, *arguments])["folder"])
    critical = Path(call([*FINE_CRITICAL, *arguments])["folder"])
    for suffix in ("png", "svg"):
        shutil.copyfile(best / f"plane.{suffix}", HERE / f"plane_fine.{suffix}")
        fine = HERE / f"critical_fine.{suffix}"
        shutil.copyfile(critical / f"critical.{suffix}", fine)
        shutil.copyfile(plane / f"plane.{suffix}", HERE / f"plane.{suffix}")
        shutil.copyfile(plane / f"critical.{suffix}", HERE / f"critical.{suffix}")
        shutil.copyfile(lazy / f"critical.{suffix}", HERE / f"critical_64.{suffix}")
    shutil.copyfile(plane / "findings.json", HERE / "findings.json")
    shutil.copyfile(lazy / "findings.json", HERE / "findings_64.json")
    shutil.copyfile(best / "findings.json", HERE / "findings_fine.json")
    shutil.copyfile(critical / "findings.json", HERE / "findings_critical.json")
    shutil.copyfile(plane.parent / "environment.json", HERE / "environment.json")
    keep(plane.parent, HERE / "results.jsonl")
    # More steps make another set of cells.
    keep(critical.parent, HERE / "results_critical.jsonl")


def keep(cells: Path, path: Path) -> None:
    """Copy the rows of plain SGD; the bridge study keeps the others."""
    lines = (cells / "cells.jsonl").read_text().splitlines(keepends=True)
    plain = [line for line in lines if json.loads(line)["optimizer"] == "sgd"]
    path.write_text("".join(plain))


if __name__ == "__main__":
    run(sys.argv[1:])
