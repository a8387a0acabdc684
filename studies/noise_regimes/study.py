"""Does the noise of SGD help or hurt by regime?

Runs `saiopt noise phase` on both sides of α = 1, on digits and on 5,000 images of
MNIST, reusing finished networks of noise_depth and noise_kernel_regime, and copies
rows, findings, environment and figures beside this file. Further arguments go to the
command; with `--draw` alone it judges and draws the rows that are there.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from saiopt.analysis.noise_phase import plot_effects
from saiopt.cli import main
from saiopt.lab.noise.gains import Gain, gains, ways_out

HERE = Path(__file__).parent


def powers(first: int, last: int, step: int = 1) -> list[str]:
    """Return powers of two as arguments."""
    return [str(2.0**power) for power in range(first, last + 1, step)]


COMMANDS = {
    "digits": [
        *("--sizes", "256", "--held-out", "1536", "--seeds", "8", "--layers", "5"),
        *("--alphas", *powers(-6, 15, 3), "--temperatures", *powers(-14, -3)),
        *("--max-steps", "10000"),
    ],
    "mnist-5k": [
        *("--sizes", "1024", "--held-out", "904", "--seeds", "5"),
        *("--alphas", *powers(-5, 15, 5), "--temperatures", *powers(-11, -3, 2)),
        *("--max-steps", "20000"),
    ],
}
TITLES = {"digits": "digits, P = 256", "mnist-5k": "MNIST, P = 1024"}
Row = dict[str, Any]


def train(data: str, arguments: list[str]) -> None:
    """Train a plane and copy its files."""
    output = io.StringIO()
    command = ["noise", "phase", "--json", "--precision", "float32", "--data", data]
    with contextlib.redirect_stdout(output):
        code = main([*command, *COMMANDS[data], *arguments])
    if code:
        sys.exit(code)
    report = Path(json.loads(output.getvalue())["folder"])
    for suffix in ("png", "svg"):
        shutil.copyfile(report / f"plane.{suffix}", HERE / f"plane_{data}.{suffix}")
    cells = report.parent
    shutil.copyfile(cells / "environment.json", HERE / f"environment_{data}.json")
    alphas, sizes, temperatures = (
        set(map(float, values(COMMANDS[data], name)))
        for name in ("--alphas", "--sizes", "--temperatures")
    )
    rows = [
        line
        for line in (cells / "cells.jsonl").read_text().splitlines(keepends=True)
        if (row := json.loads(line))["alpha"] in alphas
        and row["size"] in sizes
        and row["temperature"] in temperatures
    ]
    (HERE / f"results_{data}.jsonl").write_text("".join(rows))


def values(command: list[str], name: str) -> list[str]:
    """Return the values of an option."""
    start = command.index(name) + 1
    rest = command[start:]
    ends = [i for i, word in enumerate(rest) if word.startswith("--")]
    return rest[: ends[0]] if ends else rest


def rows_of(data: str) -> list[Row]:
    """Return the rows of a data set."""
    return rows_in(HERE / f"results_{data}.jsonl")


def rows_in(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return list(map(json.loads, path.read_text().splitlines()))


def by_size() -> dict[int, list[Gain]]:
    """Judge what noise does at α = 32768 on MNIST, by P."""
    rows = rows_in(HERE.parent / "noise_kernel_regime" / "results.jsonl")
    sizes = sorted({row["size"] for row in rows})
    return {size: gains([row for row in rows if row["size"] == size]) for size in sizes}


def effects(found: list[Gain]) -> dict[str, list[tuple[float, float, float]]]:
    """Return what noise does to the test error at its best and at its worst."""
    return {
        "best T": [(g.alpha, -g.gain.mean, g.gain.half_width or 0.0) for g in found],
        "worst T": [(g.alpha, g.harm.mean, g.harm.half_width or 0.0) for g in found],
    }


def judge() -> None:
    """Judge and draw the rows that are there."""
    found: dict[str, Any] = {
        data: {"gains": gains(rows_of(data)), "ways": ways_out(rows_of(data))}
        for data in COMMANDS
    }
    found["mnist-5k, kernel regime, by P"] = by_size()
    text = json.dumps(found, indent=2, default=dataclasses.asdict)
    (HERE / "answer.json").write_text(text + "\n")
    plot_effects(
        {TITLES[data]: effects(gains(rows_of(data))) for data in COMMANDS},
        "What noise does to the test error, relative to that at the smallest T   "
        "(bars: 95 % over paired seeds)",
        [HERE / f"effects.{suffix}" for suffix in ("png", "svg")],
    )


def run(arguments: list[str]) -> None:
    """Carry out the study and keep its files."""
    if arguments != ["--draw"]:
        for data in COMMANDS:
            train(data, arguments)
    judge()


if __name__ == "__main__":
    run(sys.argv[1:])
