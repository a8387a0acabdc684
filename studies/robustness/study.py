"""Is SGD-SaI robust to learning rate and weight decay?

Trains every optimizer on a grid around its own optimum and on the paper's grid, going
on where it was stopped, and writes results.jsonl, environment.json and the figures
beside this file. README.md says the question, the rule and the answer.
"""

import functools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from saiopt.analysis.heat_map import Panel, plot_heat_maps
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.comparison.paired import Pairing, metric_of
from saiopt.lab.recipe import Recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, runs_of
from saiopt.lab.sweep.published import given_decay, published_grid
from saiopt.lab.training.run import Run

HERE = Path(__file__).parent
RECIPES = ("resnet-digits", "vit-digits")
SEEDS = (1, 2, 3)
# Seeds that helped to choose a learning rate.
SPENT = {"vit-digits": {1, 2}}
# Published grid by recipe.
GRIDS = {
    "resnet-digits": "resnet18-cifar10",
    "vit-digits": "vit-s16-imagenet",
    "resnet18-cifar10": "resnet18-cifar10",
    "vit-s16-imagenet": "vit-s16-imagenet",
}
OPTIMIZERS = (
    "sgdsai",
    "sgdsai-sqrt-numel",
    "sgdm-decoupled",
    "sgd",
    "adam",
    "adamw",
)
LR_FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Where a run takes ten times as long.
FEWER_FACTORS = {"vit-digits": LR_FACTORS[1:-1]}
DECAY_FACTORS = (0.1, 1.0, 10.0)
# Adam normalises its penalty: no value of it is a decay per step.
ADAM_PENALTY = 1e-4
CLOSE = 0.01


def own_grid(run: Run) -> Iterator[Cell]:
    """Yield the cells around one run at its recipe's learning rate."""
    for lr_factor in FEWER_FACTORS.get(run.recipe.name, LR_FACTORS):
        for decay_factor in DECAY_FACTORS:
            lr = float(f"{run.lr * lr_factor:.6g}")
            decay = run.recipe.decay_per_step / lr
            if run.optimizer == "adam":
                decay = ADAM_PENALTY
            labels = {"grid": "own", "lr": lr_factor, "decay": decay_factor}
            yield Cell(
                Run(
                    run.recipe,
                    run.optimizer,
                    lr,
                    run.seed,
                    fixed_weight_decay=float(f"{decay * decay_factor:.6g}"),
                ),
                labels,
            )


def published(recipe: Recipe, optimizer: str, seed: int) -> Iterator[Cell]:
    """Yield the cells of the paper's grid."""
    grid = published_grid(GRIDS[recipe.name])
    for lr in grid.lrs:
        for decay in grid.weight_decays:
            given = given_decay(optimizer, decay)
            yield Cell(
                Run(recipe, optimizer, lr, seed, fixed_weight_decay=given),
                {"grid": "published", "lr": lr, "decay": decay},
            )


def cells_of(runs: Sequence[Run]) -> Iterator[Cell]:
    """Yield all cells of the study for the seeds that its rule allows."""
    for run in runs:
        if run.seed not in SPENT.get(run.recipe.name, ()):
            yield from own_grid(run)
            yield from published(run.recipe, run.optimizer, run.seed)


def values(
    rows: Sequence[Row], recipe: str, optimizer: str, grid: str
) -> dict[int, dict[tuple[float, float], float | None]]:
    """Return the metric by seed and cell."""
    found: dict[int, dict[tuple[float, float], float | None]] = {}
    for row in rows:
        labels = row["labels"]
        mine = (row["recipe"], row["optimizer"], labels["grid"])
        if mine == (recipe, optimizer, grid):
            cell = (labels["lr"], labels["decay"])
            found.setdefault(row["seed"], {})[cell] = metric_of(row)
    return found


def breadth(cells: dict[tuple[float, float], float | None], best: float) -> float:
    """Return the share of cells that are nearly as good as the best."""
    return statistics.fmean(
        value is not None and value >= best - CLOSE for value in cells.values()
    )


def own_best(cells: dict[tuple[float, float], float | None]) -> float:
    """Return the best value of a grid."""
    return max(value for value in cells.values() if value is not None)


def report(rows: Sequence[Row], out: Path) -> None:
    """Print the breadths and their differences, draw the grids."""
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        own = {name: values(rows, recipe, name, "own") for name in OPTIMIZERS}
        breadths = {
            name: {seed: breadth(c, own_best(c)) for seed, c in by_seed.items()}
            for name, by_seed in own.items()
        }
        theirs = {name: values(rows, recipe, name, "published") for name in OPTIMIZERS}
        best = {
            seed: max(own_best(theirs[name][seed]) for name in OPTIMIZERS)
            for seed in theirs["sgdsai"]
        }
        for name in OPTIMIZERS:
            pairs = [
                breadths["sgdsai"][seed] - breadths[name][seed]
                for seed in sorted(breadths["sgdsai"])
            ]
            found = Pairing(recipe, "sgdsai", name, pairs)
            print(
                f"{recipe:<15}{name:<19}best {mean_best(own[name]):.4f}  breadth "
                f"{statistics.fmean(breadths[name].values()):.3f}  on the paper's grid "
                f"{mean_breadth(theirs[name], best):.3f}"
                + (f"  sgdsai broader by {found}" if name != "sgdsai" else "")
            )
        draw(recipe, own, theirs, out)


def mean_best(by_seed: dict[int, dict[tuple[float, float], float | None]]) -> float:
    """Return the best value of a grid, averaged over seeds."""
    return estimate([own_best(cells) for cells in by_seed.values()]).mean


def mean_breadth(
    by_seed: dict[int, dict[tuple[float, float], float | None]],
    best: dict[int, float],
) -> float:
    """Return the share of cells near the best of all optimizers, over seeds."""
    return statistics.fmean(breadth(by_seed[seed], best[seed]) for seed in by_seed)


def draw(
    recipe: str,
    own: dict[str, dict[int, dict[tuple[float, float], float | None]]],
    theirs: dict[str, dict[int, dict[tuple[float, float], float | None]]],
    out: Path,
) -> None:
    """Draw the own grids, and the paper's grid of ours above the published one."""
    count = len(own["sgdsai"])
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    title = f"{recipe}, validation accuracy, {seeds}"
    plot_heat_maps(
        [[Panel(name, means(own[name]), True) for name in OPTIMIZERS]],
        f"{title}; learning rate and decay per step in units of the tuned ones",
        [out / f"own_grid_{recipe}.{suffix}" for suffix in ("png", "svg")],
    )
    grid = published_grid(GRIDS[recipe])
    shown = [name for name in OPTIMIZERS if name in grid.values]
    plot_heat_maps(
        [
            [Panel(name, means(theirs[name]), True) for name in shown],
            [Panel(f"{name}, published", grid.values[name], True) for name in shown],
        ],
        f"{title}\nbelow: {grid.metric}",
        [out / f"published_grid_{recipe}.{suffix}" for suffix in ("png", "svg")],
    )


def means(
    by_seed: dict[int, dict[tuple[float, float], float | None]],
) -> dict[tuple[float, float], float | None]:
    """Average the cells of a grid; None where a seed diverged."""
    columns = {
        cell: [cells[cell] for cells in by_seed.values()]
        for cell in next(iter(by_seed.values()))
    }
    return {
        cell: None
        if None in column
        else statistics.fmean(v for v in column if v is not None)
        for cell, column in columns.items()
    }


def main() -> None:
    """Run the study."""
    options = parser(__doc__ or "", HERE, RECIPES, SEEDS).parse_args()
    for recipe in set(options.recipes) - GRIDS.keys():
        raise SystemExit(f"recipes must be some of {', '.join(GRIDS)}, got {recipe}")
    cells = list(cells_of(runs_of(options, OPTIMIZERS)))
    if not cells:
        raise SystemExit("seeds must be others than 1 and 2 on vit-digits")
    rows = results_of(cells, options, functools.partial(print, flush=True))
    report(rows, options.out)


if __name__ == "__main__":
    main()
