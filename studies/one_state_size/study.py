"""Is one state per parameter enough when models and runs grow?

Checks learning rates on a tenth of each run, trains the runs, going on from their last
checkpoints where it was stopped, and writes results.jsonl, environment.json and a
figure per size beside this file. README.md says the question, the rule and the answer.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drift import drifts
from throughout import factored_throughout

from saiopt.analysis.curves import plot_curves
from saiopt.lab.comparison.paired import (
    Pairing,
    compare_pairs,
    corrected_verdicts,
    mean_metric,
    metric_of,
)
from saiopt.lab.own.optimizer import optimizer_names
from saiopt.lab.recipe import Recipe
from saiopt.lab.recipes import get_recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, recipes_of
from saiopt.lab.training.outcome import Outcome
from saiopt.lab.training.run import Run

HERE = Path(__file__).parent
RECIPES = ("gpt-packages-3m", "gpt-packages-10m")
SEEDS = (1,)
TUNING_SEED = 0
# Of a run's steps on which learning rates are checked.
SHARE = 10
# Of the best of them, for the whole run.
LONGER = 0.5
MOST_RATES = 6
ON_BOTH = ("adamw-by-role", "muon-adamw", "sgdsai-orthogonal")
ON_THE_SMALLER = ("sgdsai-factored",)
# Trained like the last one, at its learning rate, with scales that are never fixed.
[THROUGHOUT] = optimizer_names([factored_throughout])
OPTIMIZERS = (*ON_BOTH, *ON_THE_SMALLER, THROUGHOUT)
MEASURED = ("sgdsai-orthogonal", "sgdsai-factored")
# Whose learning rate on gpt-stdlib each takes, and with which power of the width it
# falls: the spectral norm of an orthogonal step grows with the root of it.
TRANSFERS = {
    "adamw-by-role": ("adamw", 1.0),
    "muon-adamw": ("muon-adamw", 0.5),
    "sgdsai-orthogonal": ("sgdsai-orthogonal", 0.5),
    "sgdsai-factored": ("sgdsai-factored", 1.0),
}
SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "adamw-by-role": ({"betas": (0.9, 0.95)}, {"betas": (0.9, 0.99)}),
}
SERIES = [float(f"{digit}e{power}") for power in range(-7, 2) for digit in (1, 2, 5)]
PAIRS = (
    ("sgdsai-orthogonal", "adamw-by-role"),
    ("sgdsai-orthogonal", "muon-adamw"),
    ("sgdsai-factored", "adamw-by-role"),
)
SHOWN = (THROUGHOUT, "sgdsai-factored")
# From so many seeds on intervals judge, before it differences above the margin.
ENOUGH_SEEDS, MARGIN = 3, 0.03


def optimizers_on(recipe: Recipe) -> Sequence[str]:
    """Return the optimizers of a size."""
    return OPTIMIZERS if recipe.name == RECIPES[0] else ON_BOTH


def start(recipe: Recipe, optimizer: str) -> float:
    """Return the rate around which a tenth of a run checks, of the series 1-2-5."""
    known, power = TRANSFERS[optimizer]
    small: Any = get_recipe("gpt-stdlib")
    task: Any = recipe.task
    lr = small.lrs[known] * (small.task.n_embd / task.n_embd) ** power
    # Of two that are as near the smaller.
    return min(SERIES, key=lambda near: (round(abs(math.log(near / lr)), 9), near))


def settings_of(optimizer: str) -> Sequence[Mapping[str, Any]]:
    """Return the settings that are tried, beside those that the lab gives."""
    return SETTINGS.get(optimizer, ({},))


def label(settings: Mapping[str, Any]) -> str:
    """Return what tells a run from others at the same learning rate."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def cell(
    recipe: Recipe, optimizer: str, lr: float, settings: Mapping[str, Any], seed: int
) -> Cell:
    """Return a run of a length."""
    run = Run(recipe, optimizer, lr, seed, settings=settings)
    return Cell(run, {"steps": recipe.steps, "at": label(settings)})


def tenth(recipe: Recipe) -> Recipe:
    """Return a recipe of a tenth of the steps, evaluated at its end."""
    steps = max(recipe.steps // SHARE, 1)
    return dataclasses.replace(recipe, steps=steps, eval_every=steps)


def rates(scores: Mapping[float, float], centre: float) -> list[float]:
    """Return rates around one, further ones while the best so far is at an end.

    Args:
        scores: Loss by rate, of those that were trained.
        centre: Of the series.

    Returns:
        At most ``MOST_RATES``.
    """
    at = SERIES.index(centre)
    low, high = at - 1, at + 1
    while high - low + 1 < MOST_RATES and scores.keys() >= set(SERIES[low : high + 1]):
        best = min(SERIES[low : high + 1], key=scores.__getitem__)
        if SERIES[low] < best < SERIES[high]:
            break
        low, high = (low - 1, high) if best == SERIES[low] else (low, high + 1)
    return SERIES[low : high + 1]


def losses(
    rows: Sequence[Row], recipe: Recipe, optimizer: str, at: str
) -> dict[float, float]:
    """Return the loss by rate on a tenth of a run, infinite where it diverged."""
    return {
        row["lr"]: math.inf if metric_of(row) is None else row["loss"]
        for row in rows
        if (row["recipe"], row["optimizer"]) == (recipe.name, optimizer)
        and row["seed"] == TUNING_SEED
        and row["labels"] == {"steps": tenth(recipe).steps, "at": at}
    }


def best(
    rows: Sequence[Row], recipe: Recipe, optimizer: str
) -> tuple[float, Mapping[str, Any]] | None:
    """Return the rate and the settings that a tenth of the run ended lowest at."""
    found = [
        (loss, lr, index)
        for index, settings in enumerate(settings_of(optimizer))
        for lr, loss in losses(rows, recipe, optimizer, label(settings)).items()
    ]
    if not found:
        return None
    _, lr, index = min(found)
    return lr, settings_of(optimizer)[index]


def tuning_cells(
    rows: Sequence[Row], recipes: Sequence[Recipe], optimizers: Sequence[str]
) -> Iterator[Cell]:
    """Yield the tenths of runs that are asked for, given the rows that there are."""
    for recipe in recipes:
        for optimizer in optimizers:
            if optimizer not in TRANSFERS or optimizer not in optimizers_on(recipe):
                continue
            for settings in settings_of(optimizer):
                scores = losses(rows, recipe, optimizer, label(settings))
                for lr in rates(scores, start(recipe, optimizer)):
                    yield cell(tenth(recipe), optimizer, lr, settings, TUNING_SEED)


def long_cells(
    rows: Sequence[Row],
    recipes: Sequence[Recipe],
    optimizers: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """Yield the whole runs of what a tenth was trained of, seed by seed."""
    for seed in seeds:
        for recipe in recipes:
            for optimizer in optimizers:
                if optimizer not in optimizers_on(recipe):
                    continue
                tuned = SHOWN[1] if optimizer == THROUGHOUT else optimizer
                found = best(rows, recipe, tuned)
                if found is None:
                    continue
                lr, settings = found
                if optimizer == THROUGHOUT:
                    settings = {"calibration_steps": recipe.steps}
                lr = float(f"{lr * LONGER:.6g}")
                yield cell(recipe, optimizer, lr, settings, seed)


def ended(outcome: Outcome) -> Row:
    """Add to the row of a run what the optimizer kept, and the curve."""
    result = outcome.result
    return {
        "state_bytes_per_parameter": result["state_bytes"] / result["num_parameters"],
        "curve": [list(point) for point in outcome.curve],
    }


def ended_with_drift(outcome: Outcome, runs_dir: Path, device: str) -> Row:
    """Add how far the scales have drifted, where there are any that stay."""
    row = ended(outcome)
    if outcome.run.optimizer in MEASURED and outcome.result["status"] == "finished":
        weights = runs_dir / outcome.folder / "weights.pt"
        task = outcome.run.recipe.task.load()
        found = drifts(outcome.run, task, weights, device)
        row["drift"] = {role: dataclasses.asdict(d) for role, d in found.items()}
    return row


def whole_runs(rows: Sequence[Row], recipe: Recipe) -> list[Row]:
    """Return the rows of a size that are no tuning."""
    return [
        row
        for row in rows
        if row["recipe"] == recipe.name
        and row["seed"] != TUNING_SEED
        and row["labels"]["steps"] == recipe.steps
    ]


def report(rows: Sequence[Row], recipes: Sequence[Recipe], out: Path) -> None:
    """Print rates, losses, differences and drifts line by line; draw the curves."""
    judged: list[Pairing] = []
    for recipe in recipes:
        final = whole_runs(rows, recipe)
        for optimizer in optimizers_on(recipe):
            found = best(rows, recipe, optimizer)
            if found is not None:
                lr, settings = found
                at = label(settings)
                scores = losses(rows, recipe, optimizer, at)
                print(
                    f"{recipe.name:<17}{optimizer:<21}"
                    f"a tenth: {scores[lr]:.4f} at lr {lr:g} {at} "
                    f"of {', '.join(f'{rate:g}' for rate in sorted(scores))}"
                )
            mean = mean_metric(final, recipe.name, optimizer)
            if mean is not None:
                print(f"{recipe.name:<17}{optimizer:<21}whole: {mean}")
        for row in final:
            for role, drift in row.get("drift", {}).items():
                print(
                    f"{recipe.name:<17}{row['optimizer']:<21}seed {row['seed']}, "
                    f"drift of {role}: {drift['whole']:.2f} doublings, "
                    f"{drift['within']:.2f} without the mean of a tensor"
                )
        pairs = (*PAIRS, SHOWN)
        judged += [compare_pairs(final, recipe.name, *pair) for pair in pairs]
        draw(final, recipe, out)
    judged = [pairing for pairing in judged if pairing.gains or pairing.num_diverged]
    for pairing, verdict in zip(judged, corrected_verdicts(judged), strict=True):
        name = f"{pairing.optimizer} over {pairing.control}"
        print(f"{pairing.recipe:<17}{name:<43}{judgement(pairing, verdict)}")


def judgement(pairing: Pairing, verdict: str) -> str:
    """Return a mean difference and what it says.

    Args:
        pairing: Of whole runs.
        verdict: Of all comparisons together.
    """
    if not pairing.gains:
        return str(pairing)
    mean = pairing.interval.mean
    if len(pairing.gains) < ENOUGH_SEEDS:
        verdict = "open"
        if abs(mean) > MARGIN:
            verdict = "ahead" if mean > 0 else "behind"
    return f"{pairing.mean_text} {verdict}"


def draw(rows: Sequence[Row], recipe: Recipe, out: Path) -> None:
    """Draw the loss of a size over its steps, every seed and the mean."""
    curves = {
        optimizer: [row["curve"] for row in rows if row["optimizer"] == optimizer]
        for optimizer in optimizers_on(recipe)
    }
    curves = {optimizer: seeds for optimizer, seeds in curves.items() if seeds}
    if curves:
        paths = [out / f"curves_{recipe.name}.{suffix}" for suffix in ("png", "svg")]
        plot_curves(curves, recipe.description, recipe.metric.label, paths, "steps")


def main() -> None:
    """Run the study."""
    made = parser(__doc__ or "", HERE, RECIPES, SEEDS, takes_lrs=False)
    made.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    made.add_argument("--tune-only", action="store_true", help="no whole runs")
    options = made.parse_args()
    recipes = recipes_of(options)
    train = functools.partial(
        results_of,
        options=options,
        say=functools.partial(print, flush=True),
        only_missing=True,
    )
    rows, known = train([]), -1
    while len(rows) > known:
        known = len(rows)
        cells = list(tuning_cells(rows, recipes, options.optimizers))
        rows = train(cells, extract=ended)
    if not options.tune_only:
        cells = list(long_cells(rows, recipes, options.optimizers, options.seeds))
        place = {"runs_dir": options.runs_dir, "device": options.device}
        extract = functools.partial(ended_with_drift, **place)
        rows = train(cells, extract=extract, keep_weights=True)
    report(rows, recipes, options.out)


if __name__ == "__main__":
    main()
