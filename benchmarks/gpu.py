"""Repeat the paper's table of state memory and step time on a CUDA GPU.

    pip install -e '.[lab,plot,bench]'
    python benchmarks/gpu.py

steps GPT-2 XL and Llama2-7B shapes in float32 and bfloat16 and writes ``gpu.csv``: the
state's bytes, the blocks that ``saiopt.memory`` predicts for it and those that the
allocator really holds (allocated and reserved), the median step with quartiles, the
bandwidth measured in the same rounds and the ratio to its floor. What does not fit in
the GPU's memory gets a row that says so: Llama2-7B in float32 needs 80 GB with one
state and 110 GB with AdamW's two.

Figures need a GPU. ``--device cpu --shapes tiny`` only tries the script out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from saiopt.bench.candidates import usual
from saiopt.bench.plan import Plan
from saiopt.bench.rows import BenchRow, write_csv
from saiopt.bench.run import DoesNotFitError, run_bench
from saiopt.bench.table import renderables
from saiopt.lab.optimizers import variants
from saiopt.optimizer.options import STATE_DTYPES

RIVALS = (
    "sgd-foreach",
    "sgd-fused",
    "adamw-foreach",
    "adamw-fused",
    "muon",
    "adam-mini",
    "prodigy",
    "sgd-sai",
)
GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all shapes and dtypes, print their tables, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--shapes", nargs="+", default=["gpt2-xl", "llama2-7b"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed in each round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gpu.csv")
    options = parser.parse_args(arguments)
    ours = [name for name, c in usual().items() if c.spec.is_ours]
    names = (*ours, *variants("sgdsai-orthogonal", STATE_DTYPES), *RIVALS)
    rows: list[BenchRow] = []
    try:
        plans = [
            Plan(shapes, names, options.device, dtype, options.rounds, options.steps)
            for shapes in options.shapes
            for dtype in options.dtypes
        ]
        for plan in plans:
            try:
                found = run_bench(plan, lambda line: print(line, file=sys.stderr))
            except DoesNotFitError as error:
                print(f"{plan.shapes} in {plan.dtype}: {error}")
                continue
            _print(found)
            rows += found
            # After every model: an interrupted run keeps what it has.
            write_csv(rows, options.out)
    except ValueError as error:
        parser.error(str(error))


def _print(rows: Sequence[BenchRow]) -> None:
    console = Console()
    for item in renderables(rows):
        console.print(item)
    if rows[0].device == "cuda":
        console.print(_state_table(rows))


def _state_table(rows: Sequence[BenchRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("GiB of state")
    for heading in ("tensors", "predicted blocks", "allocated", "reserved"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.state_bytes_per_param is not None:
            table.add_row(row.optimizer, *_state_cells(row))
    return table


def _state_cells(row: BenchRow) -> Iterator[str]:
    tensors = (row.state_bytes_per_param or 0) * row.num_params
    sizes = (tensors, row.predicted_bytes, row.allocated_bytes, row.reserved_bytes)
    for size in sizes:
        yield "" if size is None else f"{size / GIB:.3f}"


if __name__ == "__main__":
    main()
