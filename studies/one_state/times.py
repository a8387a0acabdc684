"""The seconds of a training step of every optimizer, on an idle machine.

Trains each for some steps by turns, and writes the medians as times.json beside this
file: `python studies/one_state/times.py`.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cells import RECIPES, cell, optimizers_on, start
from search import Point

from saiopt.lab.identity import identity_hash
from saiopt.lab.optimizers.modes import set_mode
from saiopt.lab.optimizers.registry import build_optimizer
from saiopt.lab.recipe import Recipe
from saiopt.lab.recipes import get_recipe
from saiopt.lab.task import Task
from saiopt.lab.training.environment import environment

HERE = Path(__file__).parent
ROUNDS, STEPS = 7, 5
# As many gradients as factored scales are measured over, and a few more.
MEASURED = 105
CPU = torch.device("cpu")


def stepper(recipe: Recipe, task: Task, optimizer: str) -> Callable[[], None]:
    """Return what trains a model for some steps, its scales measured."""
    run = cell(recipe, optimizer, Point(start(recipe, optimizer)), seed=0).run
    model = task.build_model(run.seed)
    stepped = build_optimizer(
        optimizer, model, run.lr, run.weight_decay, run.seed, run.all_settings
    )
    model.train()
    set_mode(stepped, training=True)
    counted = itertools.count()

    def train(steps: int = STEPS) -> None:
        for _ in range(steps):
            batch = task.batch(run.seed, next(counted), recipe.batch_size)
            model.zero_grad()
            task.loss(model, batch).backward()
            stepped.step()

    # A step that measures takes longer than all later ones.
    measures = any("calibration_steps" in group for group in stepped.param_groups)
    train(MEASURED if measures else STEPS)
    return train


def median_seconds(recipe: Recipe) -> dict[str, float]:
    """Time a step of every optimizer of a task, round by round."""
    task = recipe.task.load()
    steppers = {n: stepper(recipe, task, n) for n in optimizers_on(recipe.name)}
    found: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(ROUNDS):
        for name, train in steppers.items():
            began = time.perf_counter()
            train()
            found[name].append((time.perf_counter() - began) / STEPS)
    for name, times in found.items():
        print(f"{recipe.name:<17}{name:<21}{1e3 * statistics.median(times):8.1f} ms")
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Time all tasks on one thread."""
    torch.set_num_threads(1)
    recipes = [get_recipe(name) for name in RECIPES]
    seconds = {recipe.name: median_seconds(recipe) for recipe in recipes}
    data = identity_hash({r.name: r.task.load().fingerprint for r in recipes})
    found = {"seconds": seconds, "environment": environment(CPU, data, code="")}
    (HERE / "times.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
