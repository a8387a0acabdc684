"""Do the perceptron's norm and training time follow the theory of SGD noise?

Runs `saiopt noise perceptron` at its default size, which reuses finished runs, and
copies rows, exponents, environment and figure beside this file. Further arguments go to
the command.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

from saiopt.cli import main

HERE = Path(__file__).parent
RUNS = Path("runs")
FILES = {
    "cells.jsonl": "results.jsonl",
    "exponents.json": "exponents.json",
    "environment.json": "environment.json",
    "perceptron.png": "perceptron.png",
    "perceptron.svg": "perceptron.svg",
}


def run(arguments: list[str]) -> None:
    """Carry out the study and keep its files."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(["noise", "perceptron", "--json", *arguments])
    if code:
        sys.exit(code)
    folder = RUNS / json.loads(output.getvalue())["folder"]
    for source, target in FILES.items():
        shutil.copyfile(folder / source, HERE / target)


if __name__ == "__main__":
    run(sys.argv[1:])
