"""Time optimizers on the models of the small recipes, and weigh their state.

    python benchmarks/recipe_step.py

writes ``recipe_step_cpu.csv`` beside this file: bytes of state per parameter, as a real
step allocates them, and milliseconds of a step once scales are calibrated, on one
thread. Every round visits all optimizers of a recipe in a new random order.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.bench.clock import seconds
from saiopt.lab.optimizers import build_optimizer, state_bytes
from saiopt.lab.recipes import get_recipe, small_recipes
from saiopt.lab.training.environment import commit, hardware

CPU = torch.device("cpu")
RECIPES = small_recipes()
OPTIMIZERS = (
    "sgdsai-orthogonal",
    "sgdsai-factored",
    "muon-factored",
    "muon-adamw",
    "adamw",
    "sgdsai",
)
# So small that no step moves a weight far.
LR = 1e-9


def calibrated(name: str, model: nn.Module) -> Optimizer:
    """Return an optimizer that has stepped, and measures no longer."""
    optimizer = build_optimizer(name, model, LR, 0.0, seed=0)
    for group in optimizer.param_groups:
        if "calibration_steps" in group:
            group["calibration_steps"] = 1
    for _ in range(2):
        optimizer.step()
    return optimizer


def rows_of(recipe: str, rounds: int) -> list[dict[str, Any]]:
    """Measure all optimizers on one recipe's model."""
    task = get_recipe(recipe).task.load()
    model = task.build_model(0)
    params = [p for p in model.parameters() if p.requires_grad]
    for param in params:
        param.grad = 1e-3 * torch.randn_like(param)
    optimizers = {name: calibrated(name, model) for name in OPTIMIZERS}
    times: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    order = list(OPTIMIZERS)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(seconds(optimizers[name].step, CPU))
    count = sum(p.numel() for p in params)
    rows = []
    for name, values in times.items():
        lower, middle, upper = statistics.quantiles(values, n=4)
        rows.append(
            {
                "recipe": recipe,
                "optimizer": name,
                "parameters": count,
                "state_bytes_per_parameter": round(
                    state_bytes(optimizers[name]) / count, 3
                ),
                "ms": round(1e3 * middle, 3),
                "lower_quartile_ms": round(1e3 * lower, 3),
                "upper_quartile_ms": round(1e3 * upper, 3),
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    where = {
        "rounds": options.rounds,
        "torch": torch.__version__,
        "hardware": hardware(CPU),
        "commit": commit(),
    }
    rows = [row for name in options.recipes for row in rows_of(name, options.rounds)]
    for row in rows:
        print(
            f"{row['recipe']:<17}{row['optimizer']:<19}"
            f"{row['state_bytes_per_parameter']:>7.2f} bytes/parameter"
            f"{row['ms']:>9.2f} ms"
        )
    with (options.out / "recipe_step_cpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


if __name__ == "__main__":
    main()
