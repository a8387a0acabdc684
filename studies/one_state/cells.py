"""The runs of the study: what tunes each optimizer, what judges it, and longer ones."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from adapters import factored_a, factored_b
from search import Point, Scores, best, goodness, wanted

from saiopt.lab.own.optimizer import optimizer_names
from saiopt.lab.recipe import Recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell
from saiopt.lab.training.run import Run

RECIPES = (
    "gpt-stdlib",
    "vit-digits",
    "lora-pydoc",
    "ddpm-digits",
    "lora-ddpm-digits",
    "resnet-digits",
)
# Their adapters are hidden matrices, and nothing else trains.
ALL_HIDDEN = ("lora-pydoc", "lora-ddpm-digits")
WITH_EMBEDDINGS = ("gpt-stdlib",)
SEEDS = (1, 2, 3, 4, 5)
TUNING_SEED = 0
ON_ALL = (
    "sgdsai-orthogonal",
    "adamw-by-role",
    "muon-adamw",
    "sgdsai-factored",
    "muon-factored",
    "sgdsai",
)
ON_TWO = ("adam-mini", "lion", "schedule-free-adamw")
ON_ADAPTERS = ("scaled-adamw", *optimizer_names([factored_a, factored_b]))
OPTIMIZERS = (*ON_ALL, *ON_TWO, *ON_ADAPTERS)
# Whose learning rate the recipes lack.
_BEGINS_LIKE = {
    "adamw-by-role": "adamw",
    "factored_a": "sgdsai-orthogonal",
    "factored_b": "sgdsai-orthogonal",
}
LENGTHS = (0.5, 2.0, 5.0)
AT_LENGTHS = ON_ALL[:4]
LENGTH_SEEDS = SEEDS[:3]


def optimizers_on(recipe: str) -> Sequence[str]:
    """Return the optimizers of a task."""
    if recipe in ALL_HIDDEN:
        return (*ON_ALL, *ON_ADAPTERS)
    return (*ON_ALL, *ON_TWO) if recipe in RECIPES[:2] else ON_ALL


def start(recipe: Recipe, optimizer: str) -> float:
    """Return the learning rate from which a search begins."""
    known = _BEGINS_LIKE.get(optimizer, optimizer)
    return recipe.lrs.get(known, recipe.lrs["muon-factored"])


def points_of(recipe: Recipe, optimizer: str, scores: Scores) -> list[Point]:
    """Return the points that the search on a task asks for."""
    return wanted(
        optimizer,
        start(recipe, optimizer),
        scores,
        has_rest=recipe.name not in ALL_HIDDEN,
        has_embeddings=recipe.name in WITH_EMBEDDINGS,
    )


def cell(
    recipe: Recipe, optimizer: str, point: Point, seed: int, length: float = 1.0
) -> Cell:
    """Return a run at a point, ``length`` times as long as the recipe's."""
    decay = recipe.decay_per_step * point.decay / point.lr
    labels: dict[str, Any] = {"at": point.label, "decay": point.decay}
    if length != 1:
        labels["length"] = length
        recipe = dataclasses.replace(
            recipe,
            steps=round(length * recipe.steps),
            eval_every=round(length * recipe.eval_every),
        )
    run = Run(
        recipe,
        optimizer,
        point.lr,
        seed,
        fixed_weight_decay=float(f"{decay:.6g}"),
        settings=point.settings,
    )
    return Cell(run, labels)


def of_length(rows: Sequence[Row], length: float = 1.0) -> list[Row]:
    """Return the rows of runs of a length."""
    return [row for row in rows if row["labels"].get("length", 1.0) == length]


def scores_of(rows: Sequence[Row], recipe: Recipe, optimizer: str) -> Scores:
    """Return how good the points were that the tuning seed was trained at."""
    found = {
        (row["lr"], row["labels"]["decay"], row["labels"]["at"]): row
        for row in _tuning_rows(of_length(rows), recipe, optimizer)
    }
    scores: dict[Point, tuple[float, ...]] = {}
    known = -1
    while len(scores) > known:
        known = len(scores)
        for point in points_of(recipe, optimizer, scores):
            row = found.get((point.lr, point.decay, point.label))
            if row is not None:
                scores[point] = score(row, recipe)
    return scores


def _tuning_rows(rows: Sequence[Row], recipe: Recipe, optimizer: str) -> list[Row]:
    asked = (recipe.name, optimizer, TUNING_SEED)
    return [r for r in rows if (r["recipe"], r["optimizer"], r["seed"]) == asked]


def score(row: Row, recipe: Recipe) -> tuple[float, ...]:
    """Return what is the larger the better a run was."""
    metric = recipe.metric
    return goodness(row, metric.name, higher=metric.higher_is_better)


def _asked(recipe: Recipe, optimizers: Sequence[str]) -> list[str]:
    there = optimizers_on(recipe.name)
    return [name for name in optimizers if name in there]


def tuning_cells(
    rows: Sequence[Row], recipes: Sequence[Recipe], optimizers: Sequence[str]
) -> Iterator[Cell]:
    """Yield the runs that the searches ask for, given the rows that there are."""
    for recipe in recipes:
        for optimizer in _asked(recipe, optimizers):
            scores = scores_of(rows, recipe, optimizer)
            for point in points_of(recipe, optimizer, scores):
                yield cell(recipe, optimizer, point, TUNING_SEED)


def tuned_point(rows: Sequence[Row], recipe: Recipe, optimizer: str) -> Point:
    """Return the point that a search has found by now.

    Raises:
        SystemExit: If it has not begun.
    """
    scores = scores_of(rows, recipe, optimizer)
    if not scores:
        raise SystemExit(
            f"{optimizer} must be tuned on {recipe.name} before it is judged: add "
            "tuning to --stages"
        )
    return best(scores)


def verdict_cells(
    rows: Sequence[Row],
    recipes: Sequence[Recipe],
    optimizers: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """Yield the runs at the points that the searches found."""
    for recipe in recipes:
        names = _asked(recipe, optimizers)
        points = {name: tuned_point(rows, recipe, name) for name in names}
        for seed in seeds:
            for optimizer, point in points.items():
                yield cell(recipe, optimizer, point, seed)


def length_tuning_cells(
    rows: Sequence[Row], recipes: Sequence[Recipe], optimizers: Sequence[str]
) -> Iterator[Cell]:
    """Yield longer runs of the tuning seed, at the learning rate found and at half."""
    for recipe in recipes:
        for optimizer in optimizers:
            for length in LENGTHS:
                for point in _candidates(rows, recipe, optimizer, length):
                    if length > 1:
                        yield cell(recipe, optimizer, point, TUNING_SEED, length)


def length_cells(
    rows: Sequence[Row],
    recipes: Sequence[Recipe],
    optimizers: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """Yield the runs of other lengths that are compared."""
    for recipe in recipes:
        for optimizer in optimizers:
            for length in LENGTHS:
                first, *others = _candidates(rows, recipe, optimizer, length)
                if length > 1:
                    first = _better(rows, recipe, optimizer, length, [first, *others])
                for seed in seeds:
                    yield cell(recipe, optimizer, first, seed, length)


def _candidates(
    rows: Sequence[Row], recipe: Recipe, optimizer: str, length: float
) -> list[Point]:
    found = tuned_point(rows, recipe, optimizer)
    return [found] + [dataclasses.replace(found, lr=found.lr / 2)] * (length > 1)


def _better(
    rows: Sequence[Row],
    recipe: Recipe,
    optimizer: str,
    length: float,
    points: Sequence[Point],
) -> Point:
    found = {
        row["lr"]: score(row, recipe)
        for row in _tuning_rows(of_length(rows, length), recipe, optimizer)
    }
    return best({point: found[point.lr] for point in points})
