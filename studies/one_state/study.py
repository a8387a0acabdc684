"""Is one state per parameter enough?

Tunes every optimizer on every small task, trains what it found from the same seeds,
going on where it was stopped, and writes results.jsonl, environment.json and the
figures beside this file. README.md says the question, the rule and the answer.
"""

import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from search import Point, Scores, best, goodness, wanted

from saiopt.analysis.state_plot import plot_against_state
from saiopt.lab.comparison.paired import (
    Pairing,
    compare_pairs,
    corrected_verdicts,
    draw_gains,
    mean_metric,
)
from saiopt.lab.recipe import Recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, recipes_of
from saiopt.lab.training.outcome import Outcome
from saiopt.lab.training.run import Run

HERE = Path(__file__).parent
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
OPTIMIZERS = (*ON_ALL, *ON_TWO)
PAIRS = (
    ("sgdsai-orthogonal", "adamw-by-role"),
    ("sgdsai-orthogonal", "muon-adamw"),
    ("sgdsai-orthogonal", "muon-factored"),
    ("sgdsai-orthogonal", "sgdsai-factored"),
    ("sgdsai-factored", "adamw-by-role"),
    ("sgdsai-factored", "sgdsai"),
)
SHOWN = tuple(("sgdsai-orthogonal", rival) for rival in ON_TWO)


def optimizers_on(recipe: str) -> Sequence[str]:
    """Return the optimizers of a task."""
    return OPTIMIZERS if recipe in RECIPES[:2] else ON_ALL


def start(recipe: Recipe, optimizer: str) -> float:
    """Return the learning rate from which a search begins."""
    known = "adamw" if optimizer == "adamw-by-role" else optimizer
    if known not in recipe.lrs:
        known = "muon-factored"
    return recipe.lrs[known]


def points_of(recipe: Recipe, optimizer: str, scores: Scores) -> list[Point]:
    """Return the points that the search on a task asks for."""
    return wanted(
        optimizer,
        start(recipe, optimizer),
        scores,
        has_rest=recipe.name not in ALL_HIDDEN,
        has_embeddings=recipe.name in WITH_EMBEDDINGS,
    )


def cell(recipe: Recipe, optimizer: str, point: Point, seed: int) -> Cell:
    """Return a run at a point."""
    decay = recipe.decay_per_step * point.decay / point.lr
    run = Run(
        recipe,
        optimizer,
        point.lr,
        seed,
        fixed_weight_decay=float(f"{decay:.6g}"),
        settings=point.settings,
    )
    return Cell(run, {"at": point.label, "decay": point.decay})


def how_it_went(outcome: Outcome) -> Mapping[str, Any]:
    """Add to a row what the optimizer kept, and the metric over training."""
    result = outcome.result
    return {
        "state_bytes_per_parameter": result["state_bytes"] / result["num_parameters"],
        "curve": [list(point) for point in outcome.curve],
    }


def scores_of(rows: Sequence[Row], recipe: Recipe, optimizer: str) -> Scores:
    """Return how good the points were that the tuning seed was trained at."""
    metric = recipe.metric
    found = {
        (row["lr"], row["labels"]["decay"], row["labels"]["at"]): row
        for row in rows
        if (row["recipe"], row["optimizer"]) == (recipe.name, optimizer)
        and row["seed"] == TUNING_SEED
    }
    scores: dict[Point, tuple[float, ...]] = {}
    known = -1
    while len(scores) > known:
        known = len(scores)
        for point in points_of(recipe, optimizer, scores):
            row = found.get((point.lr, point.decay, point.label))
            if row is not None:
                scores[point] = goodness(
                    row, metric.name, higher=metric.higher_is_better
                )
    return scores


def tuning_cells(
    rows: Sequence[Row], recipes: Sequence[Recipe], optimizers: Sequence[str]
) -> Iterator[Cell]:
    """Yield the runs that the searches ask for, given the rows that there are."""
    for recipe in recipes:
        for optimizer in optimizers:
            if optimizer in optimizers_on(recipe.name):
                scores = scores_of(rows, recipe, optimizer)
                for point in points_of(recipe, optimizer, scores):
                    yield cell(recipe, optimizer, point, TUNING_SEED)


def verdict_cells(
    rows: Sequence[Row],
    recipes: Sequence[Recipe],
    optimizers: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """Yield the runs at the points that the searches found."""
    for recipe in recipes:
        for seed in seeds:
            for optimizer in optimizers:
                if optimizer in optimizers_on(recipe.name):
                    point = best(scores_of(rows, recipe, optimizer))
                    yield cell(recipe, optimizer, point, seed)


def report(rows: Sequence[Row], recipes: Sequence[Recipe], out: Path) -> None:
    """Print points, means and paired gains with corrected verdicts; draw the gains."""
    judged: list[Pairing] = []
    shown: list[Pairing] = []
    for recipe in recipes:
        final = [row for row in rows if row["seed"] != TUNING_SEED]
        for optimizer in optimizers_on(recipe.name):
            scores = scores_of(rows, recipe, optimizer)
            if not scores:
                continue
            point = best(scores)
            mean = mean_metric(final, recipe.name, optimizer)
            print(
                f"{recipe.name:<17}{optimizer:<21}{mean}  lr {point.lr:g} "
                f"decay {point.decay:g} {point.label} ({len(scores)} tuning runs)"
            )
        judged += [compare_pairs(final, recipe.name, *pair) for pair in PAIRS]
        shown += [compare_pairs(final, recipe.name, *pair) for pair in SHOWN]
    for comparison, verdict in zip(judged, corrected_verdicts(judged), strict=True):
        name = f"{comparison.optimizer} over {comparison.control}"
        print(f"{comparison.recipe:<17}{name:<40}{comparison}; corrected: {verdict}")
    for comparison in shown:
        if comparison.gains:
            name = f"{comparison.optimizer} over {comparison.control}"
            print(f"{comparison.recipe:<17}{name:<40}{comparison}")
    paths = [out / f"gains.{suffix}" for suffix in ("png", "svg")]
    found = [c for c in judged if c.gains]
    if found:
        draw_gains(found, lambda c: f"{c.optimizer} over {c.control}", paths)
    for recipe in recipes:
        draw_state(rows, recipe, out)


def draw_state(rows: Sequence[Row], recipe: Recipe, out: Path) -> None:
    """Draw the metric against bytes of state, and the mean curves of training."""
    points: dict[str, tuple[float, float, float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for optimizer in optimizers_on(recipe.name):
        mine = [
            row
            for row in rows
            if (row["recipe"], row["optimizer"]) == (recipe.name, optimizer)
            and row["seed"] != TUNING_SEED
        ]
        mean = mean_metric(mine, recipe.name, optimizer)
        if mean is None:
            continue
        num_bytes = mine[0]["state_bytes_per_parameter"]
        points[optimizer] = (num_bytes, mean.mean, mean.half_width or 0.0)
        ended = [row["curve"] for row in mine if row["status"] == "finished"]
        curves[optimizer] = [
            (at[0][0], statistics.fmean(value for _, value in at))
            for at in zip(*ended, strict=True)
        ]
    if points:
        paths = [out / f"state_{recipe.name}.{suffix}" for suffix in ("png", "svg")]
        plot_against_state(points, curves, recipe.metric.label, paths)


def main() -> None:
    """Run the study."""
    made = parser(__doc__ or "", HERE, RECIPES, SEEDS, takes_lrs=False)
    made.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    made.add_argument("--tune-only", action="store_true", help="leave the verdict out")
    options = made.parse_args()
    recipes = recipes_of(options)
    train = functools.partial(
        results_of,
        options=options,
        say=functools.partial(print, flush=True),
        extract=how_it_went,
        only_missing=True,
    )
    rows, known = train([]), -1
    while len(rows) > known:
        known = len(rows)
        rows = train(list(tuning_cells(rows, recipes, options.optimizers)))
    if not options.tune_only:
        rows = train(
            list(verdict_cells(rows, recipes, options.optimizers, options.seeds))
        )
    report(rows, recipes, options.out)


if __name__ == "__main__":
    main()
