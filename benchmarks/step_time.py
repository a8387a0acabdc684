"""Time the steps of all optimizers on one model's shapes, and draw them.

    python benchmarks/step_time.py --shapes gpt2 --threads 2

writes ``step_time_<device>_<shapes>.csv`` and ``.svg`` beside this file. Packages that
are not installed are named and left out; ``pip install -e '.[bench]'`` brings them. The
first run compiles torchao's kernels, which takes minutes; that is not timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from saiopt.bench.plan import Plan
from saiopt.bench.plot import plot_rows
from saiopt.bench.rows import write_csv
from saiopt.bench.run import run_bench
from saiopt.bench.table import renderables


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default="gpt2")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--optimizers", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed in each round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its table, and write rows and picture."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        plan = Plan(
            options.shapes,
            tuple(options.optimizers),
            options.device,
            options.dtype,
            options.rounds,
            options.steps,
        )
        rows = run_bench(plan, lambda line: print(line, file=sys.stderr))
    except ValueError as error:
        parser.error(str(error))
    for item in renderables(rows):
        Console().print(item)
    stem = f"step_time_{options.device}_{options.shapes}"
    write_csv(rows, options.out / f"{stem}.csv")
    plot_rows(rows, options.out / f"{stem}.svg")


if __name__ == "__main__":
    main()
