"""When does the noise of SGD change what a network learns?

Runs `saiopt noise phase` at its default size, once more at α = 64, and on finer grids
for T_opt and for T_c, all of which reuse finished networks, and copies rows, findings,
environment and figures beside this file. Further arguments go to the command; with
`--draw` alone it fits and draws the rows that are there.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from saiopt.cli import main
from saiopt.lab.noise.phase_report import find, write_report

HERE = Path(__file__).parent


def powers(first: int, last: int, step: int = 1) -> list[str]:
    """Return powers of two as arguments."""
    return [str(2.0**power) for power in range(first, last + 1, step)]


FINE_SIZE, FINE_ALPHAS, FINE_T = 256, powers(-8, -1), powers(-15, -4)
FINE_BEST = [
    *("--alphas", *FINE_ALPHAS),
    *("--temperatures", *FINE_T),
    *("--sizes", str(FINE_SIZE), "--seeds", "6"),
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
        kernel = HERE / f"kernel_regime_64.{suffix}"
        shutil.copyfile(critical / f"kernel_regime.{suffix}", kernel)
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


def draw() -> None:
    """Fit and draw the committed rows of T_c and of T_opt once more."""
    alphas, temperatures = (set(map(float, t)) for t in (FINE_ALPHAS, FINE_T))
    for name, chosen in {
        "critical": rows_in("results_critical.jsonl"),
        "fine": [
            row
            for row in rows_in("results.jsonl")
            if row["alpha"] in alphas
            and row["temperature"] in temperatures
            and row["size"] == FINE_SIZE
        ],
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / name
            report.mkdir()
            write_report(report, "digits, fc, sgd", chosen, find(chosen))
            shutil.copyfile(report / "findings.json", HERE / f"findings_{name}.json")
            for path in report.glob("kernel_regime.*"):
                shutil.copyfile(path, HERE / f"kernel_regime_64{path.suffix}")


def rows_in(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    return list(map(json.loads, (HERE / name).read_text().splitlines()))


if __name__ == "__main__":
    if sys.argv[1:] == ["--draw"]:
        draw()
    else:
        run(sys.argv[1:])
