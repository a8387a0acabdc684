"""Which learning rate suits each optimizer on each small recipe?

Trains every cell of the grids in README.md, going on where it was stopped, and writes
results.jsonl, environment.json and the figure beside this file.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.sweep_plot import plot_sweep
from saiopt.lab.environment import environment
from saiopt.lab.outcome import carry_out
from saiopt.lab.recipes import get_recipe
from saiopt.lab.run import Run

HERE = Path(__file__).parent
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
    },
    "vit-digits": {
        "sgdsai": 0.05,
        "sgdsai-sqrt-numel": 0.05,
        "adamw": 0.001,
        "sgd": 0.1,
        "sgdm-decoupled": 2.0,
    },
    "resnet-digits": {
        "sgdsai": 0.05,
        "sgdsai-sqrt-numel": 0.05,
        "adamw": 0.005,
        "sgd": 0.2,
        "sgdm-decoupled": 2.0,
    },
    "lora-pydoc": {
        "sgdsai": 0.005,
        "sgdsai-sqrt-numel": 0.005,
        "adamw": 0.005,
        "sgd": 0.1,
        "sgdm-decoupled": 0.5,
    },
}
SERIES = (1.0, 2.0, 5.0)


def grid(centre: float) -> list[float]:
    """Return the seven values of the 1-2-5 series around one of its members."""
    series = [
        float(f"{digit:.0f}e{power}") for power in range(-8, 4) for digit in SERIES
    ]
    middle = series.index(centre)
    return series[middle - 3 : middle + 4]


def cells(recipes: list[str]) -> Iterator[tuple[str, str, float]]:
    """Yield recipe, optimizer and learning rate of every cell."""
    for recipe in recipes:
        for optimizer, centre in CENTRES[recipe].items():
            for lr in grid(centre):
                yield recipe, optimizer, lr


def train_cell(recipe: str, optimizer: str, lr: float, runs: Path) -> dict[str, Any]:
    """Train one cell and return its row."""
    torch.set_num_threads(1)
    run = Run(get_recipe(recipe), optimizer, lr, SEED)
    outcome = carry_out(run, run.recipe.task.load(), runs, CPU, lambda _: None)
    return {
        "recipe": recipe,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": run.weight_decay,
        "seed": SEED,
        "status": outcome.result["status"],
        "step": outcome.result["step"],
        **outcome.result["metrics"],
        "run": outcome.folder,
    }


def train_all(recipes: list[str], runs: Path, workers: int) -> list[dict[str, Any]]:
    """Train all cells in worker processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    wanted = list(cells(recipes))
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {pool.submit(train_cell, *cell, runs): cell for cell in wanted}
        for job in as_completed(jobs):
            rows[jobs[job]] = job.result()
            print(f"{len(rows)}/{len(wanted)}", json.dumps(job.result()), flush=True)
    return [rows[cell] for cell in wanted]


def keep(rows: list[dict[str, Any]], where: dict[str, Any]) -> list[dict[str, Any]]:
    """Write rows beside those of the recipes that were not trained; return all."""
    results, origin = HERE / "results.jsonl", HERE / "environment.json"
    old = [json.loads(line) for line in results.read_text().splitlines()]
    old = [row for row in old if row["recipe"] in CENTRES.keys() - where.keys()]
    order = list(CENTRES)
    rows = sorted(old + rows, key=lambda row: order.index(row["recipe"]))
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {**json.loads(origin.read_text()), **where}
    origin.write_text(
        json.dumps({name: where[name] for name in order}, indent=2) + "\n"
    )
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """Print the best cell of every grid, draw all grids."""
    panels: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for row in rows:
        metric = get_recipe(row["recipe"]).metric.name
        curves = panels.setdefault(row["recipe"], {})
        curves.setdefault(row["optimizer"], []).append((row["lr"], row.get(metric)))
    metrics = {name: get_recipe(name).metric for name in panels}
    for recipe, curves in panels.items():
        pick = max if metrics[recipe].higher_is_better else min
        for optimizer, points in curves.items():
            finite = [point for point in points if point[1] is not None]
            best = pick(finite, key=lambda point: point[1])
            border = best[0] in {points[0][0], points[-1][0]}
            note = "  AT THE BORDER" if border else ""
            print(f"{recipe:16} {optimizer:18} {best[0]:g} {best[1]:.4f}{note}")
    plot_sweep(
        panels,
        {name: metric.label for name, metric in metrics.items()},
        {name: metric.higher_is_better for name, metric in metrics.items()},
        [HERE / "learning_rates.png", HERE / "learning_rates.svg"],
    )


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=list(CENTRES), choices=CENTRES)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/learning_rates"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    rows = train_all(arguments.recipes, arguments.runs_dir, arguments.workers)
    torch.set_num_threads(1)
    where = {
        name: environment(CPU, get_recipe(name).task.load().fingerprint)
        for name in arguments.recipes
    }
    rows = keep(rows, where)
    report(rows)


if __name__ == "__main__":
    main()
