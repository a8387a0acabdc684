"""When does SGD's noise end the kernel regime?

Runs `saiopt noise phase` on 5,000 images of MNIST at α = 32768, seed by seed, reusing
finished networks, and copies rows, findings, environment and figure beside this file.
Then the exponents are taken of the larger sizes alone and with the one network that was
not fitted, which goes on. Further arguments go to the command.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

from saiopt.cli import main
from saiopt.lab.atomic import write_json
from saiopt.lab.noise.kernel_regime import kernel_regime

HERE = Path(__file__).parent
SEEDS, ALPHA = 5, 32768.0
# Of these all T_c by the test error are inside the grid.
LARGE = 1024
SHARED = [
    *("noise", "phase", "--json", "--data", "mnist-5k", "--alphas", str(ALPHA)),
    *("--held-out", "904", "--precision", "float32"),
]
PLANE = [
    *("--sizes", "256", "512", "1024", "2048", "4096"),
    *("--temperatures", *(str(2.0**power) for power in range(-12, -2))),
    *("--max-steps", "20000"),
]
LONGER = [
    *("--sizes", "512", "--temperatures", "0.125", "--seeds", "1"),
    *("--max-steps", "80000"),
]


def call(arguments: list[str]) -> Path:
    """Train some networks and return the folder of their report."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([*SHARED, *arguments, *sys.argv[1:]])
    if code:
        sys.exit(code)
    return Path(json.loads(output.getvalue())["folder"])


def keep_looks_afterwards() -> None:
    """Take the exponents of large sizes, and with the network that stands still."""
    rows = list(map(json.loads, (HERE / "results.jsonl").read_text().splitlines()))
    looks = {
        "large": [row for row in rows if row["size"] >= LARGE],
        # Its weights are final: a training image with no active unit holds it back.
        "ended": [{**row, "status": "fitted"} for row in rows],
    }
    for name, chosen in looks.items():
        found = kernel_regime(chosen)
        if found is not None:
            write_json(HERE / f"findings_{name}.json", dataclasses.asdict(found))


def run() -> None:
    """Carry out the study and keep its files."""
    for seeds in range(1, SEEDS + 1):
        report = call([*PLANE, "--seeds", str(seeds)])
        lines = (report.parent / "cells.jsonl").read_text().splitlines(keepends=True)
        # Other studies may have added networks of other α.
        mine = [line for line in lines if json.loads(line)["alpha"] == ALPHA]
        (HERE / "results.jsonl").write_text("".join(mine))
        shutil.copyfile(report.parent / "environment.json", HERE / "environment.json")
        for path in (report / "findings.json", *report.glob("kernel_regime.*")):
            shutil.copyfile(path, HERE / path.name)
    keep_looks_afterwards()
    longer = call(LONGER).parent / "cells.jsonl"
    shutil.copyfile(longer, HERE / "results_longer.jsonl")


if __name__ == "__main__":
    run()
