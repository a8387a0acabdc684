"""Which learning rate suits each optimizer on each small recipe?

Trains every cell of the grids in README.md, going on where it was stopped, and writes
results.jsonl, environment.json and the figure beside this file.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeAlias

import torch

from saiopt.analysis.sweep_plot import plot_sweep
from saiopt.lab.outcome import carry_out
from saiopt.lab.recipes import get_recipe
from saiopt.lab.run import Run, identity_hash

HERE = Path(__file__).parent
RESULTS, ENVIRONMENTS = HERE / "results.jsonl", HERE / "environment.json"
CPU = torch.device("cpu")
SEED = 0
# Seven learning rates per optimizer, three per decade, centred by short runs.
CENTRES = {
    "gpt-stdlib": {
        "sgdsai": 0.005,
        "sgdsai-sqrt-numel": 0.005,
        "adamw": 0.001,
        "sgd": 0.1,
        "sgdm-decoupled": 1.0,
        "sgdsai-gsnr-max": 1.0,
        "sgdsai-shuffled": 0.005,
        "adam": 0.001,
        "adam-mini": 0.001,
        "adafactor": 0.05,
        "lion": 0.0005,
        "muon": 0.01,
        "prodigy": 1.0,
        "schedule-free-adamw": 0.01,
    },
    "vit-digits": {
        "sgdsai": 0.05,
        "sgdsai-sqrt-numel": 0.05,
        "adamw": 0.001,
        "sgd": 0.1,
        "sgdm-decoupled": 2.0,
        "sgdsai-gsnr-max": 5.0,
        "sgdsai-shuffled": 0.05,
        "adam": 0.001,
        "adam-mini": 0.001,
        "adafactor": 0.05,
        "lion": 0.0005,
        "muon": 0.002,
        "prodigy": 1.0,
        "schedule-free-adamw": 0.002,
    },
    "resnet-digits": {
        "sgdsai": 0.05,
        "sgdsai-sqrt-numel": 0.05,
        "adamw": 0.005,
        "sgd": 0.2,
        "sgdm-decoupled": 2.0,
        "sgdsai-shuffled": 0.05,
        "adam": 0.005,
    },
    "lora-pydoc": {
        "sgdsai": 0.005,
        "sgdsai-sqrt-numel": 0.005,
        "adamw": 0.005,
        "sgd": 0.1,
        "sgdm-decoupled": 0.2,
        "sgdsai-shuffled": 0.005,
        "scaled-gd": 0.02,
        "scaled-adamw": 0.005,
        "sgdsai-frozen-a": 0.005,
        "adamw-frozen-a": 0.005,
    },
    "ddpm-digits": {
        "sgdsai": 0.02,
        "sgdsai-sqrt-numel": 0.02,
        "adamw": 0.005,
        "sgd": 0.1,
        "sgdm-decoupled": 0.5,
        "sgdsai-shuffled": 0.02,
    },
    "lora-ddpm-digits": {
        "sgdsai": 1.0,
        "sgdsai-sqrt-numel": 1.0,
        "adamw": 0.02,
        "sgd": 2.0,
        "sgdm-decoupled": 10.0,
        "scaled-gd": 1.0,
        "scaled-adamw": 0.02,
        "sgdsai-frozen-a": 1.0,
        "adamw-frozen-a": 0.02,
    },
}
# Values that all grids of a recipe have grown by, below and above the seven.
GROWN = {"lora-ddpm-digits": (0, 2)}
COLUMNS = {
    "SGD-SaI and its controls": [
        "sgdsai",
        "sgdsai-sqrt-numel",
        "sgdsai-gsnr-max",
        "sgdsai-shuffled",
        "sgdsai-frozen-a",
        "sgdm-decoupled",
    ],
    "others without second moments": ["sgd", "lion", "muon", "scaled-gd"],
    "with second moments": [
        "adamw",
        "adam",
        "adam-mini",
        "adafactor",
        "prodigy",
        "schedule-free-adamw",
        "scaled-adamw",
        "adamw-frozen-a",
    ],
}
SERIES = (1.0, 2.0, 5.0)


Cell: TypeAlias = tuple[str, str, float]


def grid(centre: float, below: int = 0, above: int = 0) -> list[float]:
    """Return seven values of the 1-2-5 series around one of its members, and more."""
    series = [
        float(f"{digit:.0f}e{power}") for power in range(-8, 4) for digit in SERIES
    ]
    middle = series.index(centre)
    return series[middle - 3 - below : middle + 4 + above]


def cells() -> Iterator[Cell]:
    """Yield recipe, optimizer and learning rate of every cell of the study."""
    for recipe, centres in CENTRES.items():
        for optimizer, centre in centres.items():
            for lr in grid(centre, *GROWN.get(recipe, (0, 0))):
                yield recipe, optimizer, lr


def train_cell(
    recipe: str, optimizer: str, lr: float, runs: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train one cell and return its row and where it was trained."""
    torch.set_num_threads(1)
    run = Run(get_recipe(recipe), optimizer, lr, SEED)
    outcome = carry_out(run, run.recipe.task.load(), runs, CPU, lambda _: None)
    origin = json.loads((runs / outcome.folder / "environment.json").read_text())
    row = {
        "recipe": recipe,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": run.weight_decay,
        "seed": SEED,
        "status": outcome.result["status"],
        "step": outcome.result["step"],
        **outcome.result["metrics"],
        "run": outcome.folder,
        "seconds": outcome.result["total_seconds"],
        "environment": identity_hash(origin),
    }
    return row, origin


def train_all(wanted: Sequence[Cell], runs: Path, workers: int) -> None:
    """Train cells in worker processes of one thread each and keep their rows."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(train_cell, *cell, runs) for cell in wanted]
        for done, job in enumerate(as_completed(jobs), start=1):
            row, origin = job.result()
            keep(row, origin)
            print(f"{done}/{len(wanted)}", json.dumps(row), flush=True)


def read_rows() -> list[dict[str, Any]]:
    """Return the rows that there are, apart from those of cells given up."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    wanted = set(cells())
    return [row for row in rows if cell_of(row) in wanted]


def cell_of(row: dict[str, Any]) -> Cell:
    """Return the cell that a row is the result of."""
    return row["recipe"], row["optimizer"], row["lr"]


def keep(row: dict[str, Any], origin: dict[str, Any]) -> None:
    """Write a row in its place among the others, and where it was trained."""
    rows = {cell_of(old): old for old in read_rows()} | {cell_of(row): row}
    kept = [rows[cell] for cell in cells() if cell in rows]
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in kept))
    known = json.loads(ENVIRONMENTS.read_text()) | {row["environment"]: origin}
    used = dict.fromkeys(row["environment"] for row in kept)
    text = json.dumps({name: known[name] for name in used}, indent=2)
    ENVIRONMENTS.write_text(text + "\n")


def report(rows: list[dict[str, Any]]) -> None:
    """Print every grid as a table and the time it took, draw all grids."""
    panels: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for row in rows:
        metric = get_recipe(row["recipe"]).metric.name
        curves = panels.setdefault(row["recipe"], {})
        curves.setdefault(row["optimizer"], []).append((row["lr"], row.get(metric)))
    metrics = {name: get_recipe(name).metric for name in panels}
    for recipe, curves in panels.items():
        higher = metrics[recipe].higher_is_better
        print(f"\n`{recipe}`, {metrics[recipe].label}:\n")
        print("| optimizer | grid | values | best lr |\n|---|---|---|---|")
        for optimizer, points in curves.items():
            print(f"| {optimizer} | {line_of(points, higher)} |")
        spent = [row.get("seconds") for row in rows if row["recipe"] == recipe]
        timed = [seconds for seconds in spent if seconds is not None]
        print(f"\n{sum(timed) / 60:.0f} min of one thread for {len(timed)} cells")
    plot_sweep(
        panels,
        {name: metric.label for name, metric in metrics.items()},
        {name: metric.higher_is_better for name, metric in metrics.items()},
        [HERE / "learning_rates.png", HERE / "learning_rates.svg"],
        COLUMNS,
    )


def line_of(
    points: Sequence[tuple[float, float | None]], higher_is_better: bool
) -> str:
    """Return a grid's ends, its values and its best learning rate for a table."""
    finite = [(lr, value) for lr, value in points if value is not None]
    ends = f"{points[0][0]:g} to {points[-1][0]:g}"
    if not finite:
        return f"{ends} | all diverged | -"
    # The smaller learning rate in a tie.
    pick = max if higher_is_better else min
    best = pick(finite, key=lambda point: point[1])
    texts = [
        "-"
        if value is None
        else f"**{value:.3f}**"
        if lr == best[0]
        else f"{value:.3f}"
        for lr, value in points
    ]
    border = best[0] in {points[0][0], points[-1][0]}
    note = " (at the border)" if border else ""
    return f"{ends} | {' '.join(texts)} | {best[0]:g}{note}"


def main() -> None:
    """Run the study."""
    names = list(dict.fromkeys(name for grids in CENTRES.values() for name in grids))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=list(CENTRES), choices=CENTRES)
    parser.add_argument("--optimizers", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--missing", action="store_true", help="only train cells that have no row yet"
    )
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/learning_rates"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    there = {cell_of(row) for row in read_rows()} if arguments.missing else set()
    wanted = [
        cell
        for cell in cells()
        if cell[0] in arguments.recipes
        and cell[1] in arguments.optimizers
        and cell not in there
    ]
    if not arguments.draw:
        train_all(wanted, arguments.runs_dir, arguments.workers)
    report(read_rows())


if __name__ == "__main__":
    main()
