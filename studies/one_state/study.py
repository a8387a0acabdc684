"""Is one state per parameter enough?

Tunes every optimizer on every small task, trains what it found from the same seeds,
going on where it was stopped, and writes results.jsonl, environment.json and the
figures beside this file. README.md says the question, the rule and the answer.
"""

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import (
    AT_LENGTHS,
    LENGTH_SEEDS,
    LENGTHS,
    ON_ADAPTERS,
    ON_TWO,
    OPTIMIZERS,
    RECIPES,
    SEEDS,
    TUNING_SEED,
    length_cells,
    length_tuning_cells,
    of_length,
    optimizers_on,
    scores_of,
    tuning_cells,
    verdict_cells,
)
from search import best

from saiopt.analysis.horizon_plot import plot_horizons
from saiopt.analysis.state_plot import plot_against_state
from saiopt.lab.comparison.paired import (
    Pairing,
    compare_pairs,
    corrected_verdicts,
    draw_gains,
    mean_metric,
)
from saiopt.lab.recipe import Recipe
from saiopt.lab.recipes import get_recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import results_of
from saiopt.lab.studies.study_options import parser, recipes_of
from saiopt.lab.training.outcome import Outcome

HERE = Path(__file__).parent
STAGES = ("tuning", "verdict", "lengths")
PAIRS = (
    ("sgdsai-orthogonal", "adamw-by-role"),
    ("sgdsai-orthogonal", "muon-adamw"),
    ("sgdsai-orthogonal", "muon-factored"),
    ("sgdsai-orthogonal", "sgdsai-factored"),
    ("sgdsai-factored", "adamw-by-role"),
    ("sgdsai-factored", "sgdsai"),
)
SHOWN = tuple(("sgdsai-orthogonal", rival) for rival in (*ON_TWO, *ON_ADAPTERS))
AT_LENGTHS_SHOWN = (PAIRS[0], PAIRS[1], PAIRS[4])


def how_it_went(outcome: Outcome) -> Mapping[str, Any]:
    """Add to a row what the optimizer kept, and the metric over training."""
    result = outcome.result
    return {
        "state_bytes_per_parameter": result["state_bytes"] / result["num_parameters"],
        "curve": [list(point) for point in outcome.curve],
    }


def report(rows: Sequence[Row], recipes: Sequence[Recipe], out: Path) -> None:
    """Print points, means and paired gains with corrected verdicts; draw the gains."""
    judged: list[Pairing] = []
    shown: list[Pairing] = []
    times = seconds_per_step()
    final = [row for row in of_length(rows) if row["seed"] != TUNING_SEED]
    for recipe in recipes:
        for optimizer in optimizers_on(recipe.name):
            scores = scores_of(rows, recipe, optimizer)
            if not scores:
                continue
            point = best(scores)
            mean = mean_metric(final, recipe.name, optimizer)
            seconds = times.get(recipe.name, {}).get(optimizer)
            step = "" if seconds is None else f"  {1e3 * seconds:.0f} ms"
            state = num_bytes(rows, recipe, optimizer)
            ended = "not judged yet" if mean is None else str(mean)
            print(
                f"{recipe.name:<17}{optimizer:<21}{ended}  {state:.2f} bytes{step}  "
                f"lr {point.lr:g} decay {point.decay:g} {point.label} "
                f"({len(scores)} tuning runs)"
            )
        judged += [compare_pairs(final, recipe.name, *pair) for pair in PAIRS]
        shown += [compare_pairs(final, recipe.name, *pair) for pair in SHOWN]
    verdicts = corrected_verdicts(judged, planned=len(PAIRS) * len(RECIPES))
    for comparison, verdict in zip(judged, verdicts, strict=True):
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
        draw_state(final, recipe, out, times.get(recipe.name, {}))
    report_lengths(rows, recipes, out)


def seconds_per_step() -> Mapping[str, Mapping[str, float]]:
    """Return the seconds of a step by recipe and optimizer, as times.py found them."""
    path = HERE / "times.json"
    return json.loads(path.read_text())["seconds"] if path.exists() else {}


def num_bytes(rows: Sequence[Row], recipe: Recipe, optimizer: str) -> float:
    """Return the bytes of state per parameter."""
    return next(
        row["state_bytes_per_parameter"]
        for row in rows
        if (row["recipe"], row["optimizer"]) == (recipe.name, optimizer)
    )


def draw_state(
    final: Sequence[Row], recipe: Recipe, out: Path, times: Mapping[str, float]
) -> None:
    """Draw the metric against bytes of state, and the mean curves of training."""
    points: dict[str, tuple[float, float, float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for optimizer in optimizers_on(recipe.name):
        mean = mean_metric(final, recipe.name, optimizer)
        if mean is None:
            continue
        state = num_bytes(final, recipe, optimizer)
        points[optimizer] = (state, mean.mean, mean.half_width or 0.0)
        ended = [
            row["curve"]
            for row in final
            if (row["recipe"], row["optimizer"]) == (recipe.name, optimizer)
            and row["status"] == "finished"
        ]
        curves[optimizer] = [
            (at[0][0], statistics.fmean(value for _, value in at))
            for at in zip(*ended, strict=True)
        ]
    if points:
        paths = [out / f"state_{recipe.name}.{suffix}" for suffix in ("png", "svg")]
        plot_against_state(points, curves, recipe.metric.label, paths, times)


def report_lengths(rows: Sequence[Row], recipes: Sequence[Recipe], out: Path) -> None:
    """Print means and gains at every length of training, and draw them."""
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    changed = {row["recipe"] for row in rows if "length" in row["labels"]}
    for recipe in (r for r in recipes if r.name in changed):
        for length in sorted((*LENGTHS, 1.0)):
            there = [
                row
                for row in of_length(rows, length)
                if row["recipe"] == recipe.name and row["seed"] in LENGTH_SEEDS
            ]
            for optimizer in AT_LENGTHS:
                mean = mean_metric(there, recipe.name, optimizer)
                if mean is None:
                    continue
                steps = round(length * recipe.steps)
                print(f"{recipe.name:<17}{steps:>6} steps  {optimizer:<21}{mean}")
                lines = panels.setdefault(recipe.name, {})
                width = mean.half_width or 0.0
                lines.setdefault(optimizer, []).append((steps, mean.mean, width))
            for pair in AT_LENGTHS_SHOWN:
                found = compare_pairs(there, recipe.name, *pair)
                if found.gains:
                    print(f"{recipe.name:<17}  {' over '.join(pair):<40}{found}")
    if panels:
        labels = {recipe.name: recipe.metric.label for recipe in recipes}
        paths = [out / f"lengths.{suffix}" for suffix in ("png", "svg")]
        plot_horizons(panels, labels, paths)


def all_recipes() -> list[Recipe]:
    """Return the tasks of the study."""
    return [get_recipe(name) for name in RECIPES]


def main() -> None:
    """Run the study."""
    made = parser(__doc__ or "", HERE, RECIPES, SEEDS, takes_lrs=False)
    made.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    made.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    made.add_argument(
        "--missing", action="store_true", help="leave runs alone that have a row"
    )
    options = made.parse_args()
    recipes, optimizers = recipes_of(options), options.optimizers
    train = functools.partial(
        results_of,
        options=options,
        say=functools.partial(print, flush=True),
        extract=how_it_went,
    )
    stages = () if options.draw else options.stages
    rows = train([])
    if "tuning" in stages:
        known = -1
        while len(rows) > known:
            known = len(rows)
            wanted = list(tuning_cells(rows, recipes, optimizers))
            rows = train(wanted, only_missing=True)
    if "verdict" in stages:
        wanted = list(verdict_cells(rows, recipes, optimizers, options.seeds))
        rows = train(wanted, only_missing=options.missing)
    if "lengths" in stages:
        longer = [recipe for recipe in recipes if recipe.name in RECIPES[:2]]
        among = [name for name in AT_LENGTHS if name in optimizers]
        seeds = [seed for seed in LENGTH_SEEDS if seed in options.seeds]
        wanted = list(length_tuning_cells(rows, longer, among))
        rows = train(wanted, only_missing=True)
        wanted = list(length_cells(rows, longer, among, seeds))
        rows = train(wanted, only_missing=options.missing)
    # A repetition of a part leaves the figures of all.
    report(rows, recipes if options.set else all_recipes(), options.out)


if __name__ == "__main__":
    main()
