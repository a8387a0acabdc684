"""When does SGD-SaI catch up with AdamW?

Trains eight optimizers at three horizons, going on where it was stopped, and writes
results.jsonl, environment.json and the figure beside this file. README.md says the
question, the rule and the answer.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from saiopt.analysis.horizon_plot import plot_horizons
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.comparison.paired import compare_seeds, metric_of
from saiopt.lab.recipes import get_recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, runs_of
from saiopt.lab.training.run import Run

HERE = Path(__file__).parent
RECIPES = ("gpt-stdlib", "vit-digits")
SEEDS = (1, 2, 3)
# For the optimizers on which no verdict is.
FEWER_SEEDS = (1, 2)
TUNING_SEED = 0
OPTIMIZERS = (
    "sgdsai",
    "sgdm-decoupled",
    "adamw",
    "adam-mini",
    "muon",
    "lion",
    "prodigy",
    "schedule-free-adamw",
)
HORIZONS = (0.5, 1.0, 2.0)
FACTORS_AT_TWICE = (0.5, 1.0, 2.0)
UNCLIPPED = ("sgdsai", "sgdm-decoupled", "adamw")
FACTORS_UNCLIPPED = (0.25, 0.5, 1.0)
# A setting of the study: horizon, and whether gradients are clipped.
Setting = tuple[float, bool]
CLIPPED: tuple[Setting, ...] = tuple((horizon, True) for horizon in HORIZONS)
WITHOUT: Setting = (1.0, False)


def cell(run: Run, setting: Setting, factor: float, seed: int) -> Cell:
    """Return a run at another horizon, learning rate and seed."""
    horizon, clipped = setting
    recipe = dataclasses.replace(
        run.recipe,
        steps=round(run.recipe.steps * horizon),
        clip_norm=run.recipe.clip_norm if clipped else 0.0,
    )
    lr = float(f"{run.lr * factor:.6g}")
    labels = {"horizon": horizon, "clipped": int(clipped), "lr_factor": factor}
    return Cell(Run(recipe, run.optimizer, lr, seed), labels)


def first_factors(run: Run, setting: Setting) -> Sequence[float]:
    """Return the factors of the learning rate that a setting first chooses from."""
    if not setting[1]:
        return FACTORS_UNCLIPPED
    return FACTORS_AT_TWICE if setting[0] == max(HORIZONS) else (1.0,)


def settings(run: Run) -> Iterator[Setting]:
    """Yield what an optimizer is trained at."""
    yield from CLIPPED
    if run.optimizer in UNCLIPPED:
        yield WITHOUT


def tuning_cells(rows: Sequence[Row], runs: Sequence[Run]) -> Iterator[Cell]:
    """Yield the cells that choose learning rates, one more where rows ask for it."""
    for run in runs:
        for setting in settings(run):
            if len(first_factors(run, setting)) > 1:
                for factor in factors(rows, run, setting):
                    yield cell(run, setting, factor, TUNING_SEED)


def factors(rows: Sequence[Row], run: Run, setting: Setting) -> list[float]:
    """Return the factors of a grid that grows while its best lies at an end."""
    grid = list(first_factors(run, setting))
    found = tuning_metrics(rows, run, setting)
    while len(grid) > 1 and found.keys() >= set(grid):
        best = best_of({factor: found[factor] for factor in sorted(grid)}, run)
        if best is None or min(grid) < best < max(grid):
            break
        grid.append(best / 2 if best == min(grid) else best * 2)
    return sorted(grid)


def tuning_metrics(
    rows: Sequence[Row], run: Run, setting: Setting
) -> dict[float, float | None]:
    """Return the metric on the tuning seed by factor; None where it diverged."""
    return {
        row["labels"]["lr_factor"]: metric_of(row)
        for row in rows
        if of_setting(row, run.recipe.name, run.optimizer, setting)
        and row["seed"] == TUNING_SEED
    }


def best_of(found: dict[float, float | None], run: Run) -> float | None:
    """Return the first factor with the best metric, None if all diverged."""
    ended = {factor: value for factor, value in found.items() if value is not None}
    higher = run.recipe.metric.higher_is_better
    return (max if higher else min)(ended, key=ended.__getitem__, default=None)


def best_factor(rows: Sequence[Row], run: Run, setting: Setting) -> float:
    """Return the factor that was best on the tuning seed, the least if all diverged."""
    grid = factors(rows, run, setting)
    if len(grid) == 1:
        return grid[0]
    found = tuning_metrics(rows, run, setting)
    best = best_of({factor: found[factor] for factor in grid}, run)
    return min(grid) if best is None else best


def of_setting(row: Row, recipe: str, optimizer: str, setting: Setting) -> bool:
    """Tell whether a row belongs to a setting."""
    labels = row["labels"]
    held = (row["recipe"], row["optimizer"], labels["horizon"], labels["clipped"])
    return held == (recipe, optimizer, setting[0], int(setting[1]))


def by_seed(
    rows: Sequence[Row], recipe: str, optimizer: str, setting: Setting
) -> dict[int, float | None]:
    """Return the metric by seed, without the tuning seed's; None where it diverged."""
    return {
        row["seed"]: metric_of(row)
        for row in rows
        if of_setting(row, recipe, optimizer, setting) and row["seed"] != TUNING_SEED
    }


def finite(values: dict[int, float | None]) -> list[float]:
    """Return the metrics of the runs that did not diverge."""
    return [value for value in values.values() if value is not None]


def report(rows: Sequence[Row], out: Path) -> None:
    """Print the table and the paired gains; draw all optimizers over the horizons."""
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for recipe in recipes:
        for optimizer in OPTIMIZERS:
            points = []
            for setting in CLIPPED:
                values = finite(by_seed(rows, recipe, optimizer, setting))
                if values:
                    found = estimate(values)
                    spread = statistics.stdev(values) if len(values) > 1 else 0.0
                    steps = setting[0] * get_recipe(recipe).steps
                    points.append((steps, found.mean, spread))
            panels.setdefault(recipe, {})[optimizer] = points
            line = "  ".join(f"{mean:.4f} ± {spread:.4f}" for _, mean, spread in points)
            print(f"{recipe:<12}{optimizer:<21}{line}")
        values = functools.partial(by_seed, rows, recipe)
        higher = get_recipe(recipe).metric.higher_is_better
        against = functools.partial(compare_seeds, recipe, higher_is_better=higher)
        for setting in CLIPPED:
            ours, theirs = values("sgdsai", setting), values("adamw", setting)
            found = against("sgdsai", "adamw", ours, theirs)
            print(f"{recipe:<12}sgdsai over adamw at {setting[0]:g}: {found}")
        for longer, shorter in ((1, 0), (2, 1)):
            long, short = CLIPPED[longer], CLIPPED[shorter]
            ours, theirs = values("sgdsai", long), values("adamw", short)
            found = against("sgdsai", "adamw", ours, theirs)
            print(
                f"{recipe:<12}sgdsai at {long[0]:g} over adamw at {short[0]:g}: {found}"
            )
        for optimizer in UNCLIPPED:
            clipped, without = (
                values(optimizer, (1.0, True)),
                values(optimizer, WITHOUT),
            )
            found = against(optimizer, optimizer, clipped, without)
            print(f"{recipe:<12}clipping, {optimizer}: {found}")
    plot_horizons(
        panels,
        {recipe: get_recipe(recipe).metric.label for recipe in recipes},
        [out / f"horizons.{suffix}" for suffix in ("png", "svg")],
    )


def main() -> None:
    """Run the study."""
    options = parser(__doc__ or "", HERE, RECIPES, SEEDS).parse_args()
    say = functools.partial(print, flush=True)
    runs = [run for run in runs_of(options, OPTIMIZERS) if run.seed == options.seeds[0]]
    rows, known = [], -1
    while len(rows) > known:
        known = len(rows)
        wanted = list(tuning_cells(rows, runs))
        rows = results_of(wanted, options, say, only_missing=True)
    cells = [
        cell(run, setting, best_factor(rows, run, setting), seed)
        for run in runs
        for setting in settings(run)
        for seed in options.seeds
        if run.optimizer in UNCLIPPED or seed in FEWER_SEEDS
    ]
    report(results_of(cells, options, say), options.out)


if __name__ == "__main__":
    main()
