"""When does SGD's noise end the kernel regime?

Runs `saiopt noise phase` on 5,000 images of MNIST at α = 32768, seed by seed, reusing
finished networks, and copies rows, findings, environment and figure beside this file.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

from saiopt.cli import main

HERE = Path(__file__).parent
SEEDS = 5
COMMAND = [
    *("noise", "phase", "--json", "--data", "mnist-5k", "--alphas", "32768"),
    *("--sizes", "256", "512", "1024", "2048", "4096"),
    *("--temperatures", *(str(2.0**power) for power in range(-12, -2))),
    *("--held-out", "904", "--precision", "float32", "--max-steps", "20000"),
]


def call(seeds: int) -> Path:
    """Train the networks of some seeds and return the folder of their report."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([*COMMAND, "--seeds", str(seeds), *sys.argv[1:]])
    if code:
        sys.exit(code)
    return Path(json.loads(output.getvalue())["folder"])


def run() -> None:
    """Carry out the study and keep its files."""
    for seeds in range(1, SEEDS + 1):
        report = call(seeds)
        shutil.copyfile(report.parent / "cells.jsonl", HERE / "results.jsonl")
        shutil.copyfile(report.parent / "environment.json", HERE / "environment.json")
        for path in (report / "findings.json", *report.glob("kernel_regime.*")):
            shutil.copyfile(path, HERE / path.name)


if __name__ == "__main__":
    run()
