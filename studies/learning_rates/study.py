"""Which learning rate suits each optimizer on each small recipe?

Trains every cell of the grids in README.md, going on where it was stopped, and writes
results.jsonl, environment.json and the figure beside this file.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from saiopt.analysis.sweep_plot import plot_overview, plot_sweep
from saiopt.lab.comparison.paired import metric_of
from saiopt.lab.recipe import Recipe
from saiopt.lab.recipes import get_recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, recipes_of
from saiopt.lab.training.run import Run

HERE = Path(__file__).parent
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
        "sgdsai-orthogonal": 0.01,
        "sgdsai-factored": 0.002,
        "muon-factored": 0.01,
        "muon-adamw": 0.01,
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
        "sgdsai-orthogonal": 0.001,
        "sgdsai-factored": 0.0005,
        "muon-factored": 0.001,
        "muon-adamw": 0.001,
    },
    "resnet-digits": {
        "sgdsai": 0.05,
        "sgdsai-sqrt-numel": 0.05,
        "adamw": 0.005,
        "sgd": 0.2,
        "sgdm-decoupled": 2.0,
        "sgdsai-shuffled": 0.05,
        "adam": 0.005,
        "sgdsai-orthogonal": 0.005,
        "sgdsai-factored": 0.005,
        "muon-factored": 0.005,
        "muon-adamw": 0.005,
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
        "sgdsai-orthogonal": 0.005,
        "sgdsai-factored": 0.005,
        "muon-factored": 0.005,
        "muon-adamw": 0.005,
    },
    "ddpm-digits": {
        "sgdsai": 0.02,
        "sgdsai-sqrt-numel": 0.02,
        "adamw": 0.005,
        "sgd": 0.1,
        "sgdm-decoupled": 0.5,
        "sgdsai-shuffled": 0.02,
        "sgdsai-orthogonal": 0.01,
        "sgdsai-factored": 0.01,
        "muon-factored": 0.01,
        "muon-adamw": 0.01,
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
        "sgdsai-orthogonal": 0.02,
        "sgdsai-factored": 0.02,
        "muon-factored": 0.02,
        "muon-adamw": 0.02,
    },
}
# Values that all grids of a recipe have grown by, below and above the seven.
GROWN = {
    "gpt-stdlib": (0, 1),
    "lora-pydoc": (0, 1),
    "vit-digits": (3, 0),
    "ddpm-digits": (0, 1),
    "lora-ddpm-digits": (0, 2),
}
# What was swept later, from better known centres, has five values.
BY_ROLE = (
    "sgdsai-orthogonal",
    "sgdsai-factored",
    "muon-factored",
    "muon-adamw",
)
# Values that all of these grids of a recipe have grown by.
NARROW_GROWN: dict[str, tuple[int, int]] = {}
# A control that was still at the border then has more values than the others.
FURTHER = {("gpt-stdlib", "sgdsai-shuffled"): 1}
COLUMNS = {
    "SGD-SaI and its controls": [
        "sgdsai",
        "sgdsai-sqrt-numel",
        "sgdsai-gsnr-max",
        "sgdsai-shuffled",
        "sgdsai-frozen-a",
        "sgdm-decoupled",
    ],
    "one state per parameter": [
        "sgdsai-orthogonal",
        "sgdsai-factored",
        "muon-factored",
        "muon",
        "muon-adamw",
    ],
    "others without second moments": ["sgd", "lion", "scaled-gd"],
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
OVERVIEW = (
    "sgdsai-orthogonal",
    "sgdsai-factored",
    "sgdsai",
    "muon",
    "adamw",
)
SERIES = (1.0, 2.0, 5.0)


def grid(centre: float, below: int, above: int) -> list[float]:
    """Return values of the 1-2-5 series around one of its members."""
    series = [
        float(f"{digit:.0f}e{power}") for power in range(-8, 4) for digit in SERIES
    ]
    middle = series.index(centre)
    return series[middle - below : middle + 1 + above]


def reach(recipe: str, optimizer: str) -> tuple[int, int]:
    """Return how many values a grid has below and above its centre."""
    is_narrow = optimizer in BY_ROLE
    grown = (NARROW_GROWN if is_narrow else GROWN).get(recipe, (0, 0))
    further = FURTHER.get((recipe, optimizer), 0)
    half = 2 if is_narrow else 3
    return half + grown[0], half + grown[1] + further


def cells(
    recipes: Sequence[Recipe], optimizers: Sequence[str], seeds: Sequence[int]
) -> Iterator[Cell]:
    """Yield the cells of some recipes and optimizers."""
    for recipe in recipes:
        for optimizer, centre in CENTRES[recipe.name].items():
            if optimizer not in optimizers:
                continue
            for lr in grid(centre, *reach(recipe.name, optimizer)):
                for seed in seeds:
                    yield Cell(Run(recipe, optimizer, lr, seed))


def report(rows: Sequence[Row], out: Path) -> None:
    """Print every grid as a table and the time it took, draw all grids."""
    there = {(row["recipe"], row["optimizer"]) for row in rows}
    panels: dict[str, dict[str, list[tuple[float, float | None]]]] = {
        recipe: {name: [] for name in optimizers if (recipe, name) in there}
        for recipe, optimizers in CENTRES.items()
    }
    # Cells that came later than their neighbours lie between them.
    for row in sorted(rows, key=lambda row: row["lr"]):
        if row["seed"] != SEED:
            continue
        points = panels[row["recipe"]][row["optimizer"]]
        points.append((row["lr"], metric_of(row)))
    metrics = {name: get_recipe(name).metric for name in panels}
    for recipe, curves in panels.items():
        print(f"\n`{recipe}`, {metrics[recipe].label}:\n")
        print("| optimizer | grid | values | best lr |\n|---|---|---|---|")
        for optimizer, points in curves.items():
            print(
                f"| {optimizer} | {line_of(points, metrics[recipe].higher_is_better)} |"
            )
        spent = [row.get("seconds") for row in rows if row["recipe"] == recipe]
        timed = [seconds for seconds in spent if seconds is not None]
        print(f"\n{sum(timed) / 60:.0f} min of one thread for {len(timed)} cells")
    labels = {name: metric.label for name, metric in metrics.items()}
    higher = {name: metric.higher_is_better for name, metric in metrics.items()}
    paths = [out / f"learning_rates.{suffix}" for suffix in ("png", "svg")]
    plot_sweep(panels, labels, higher, paths, COLUMNS)
    paths = [out / f"overview.{suffix}" for suffix in ("png", "svg")]
    plot_overview(panels, labels, higher, OVERVIEW, paths)


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
    arguments = parser(__doc__ or "", HERE, list(CENTRES), [SEED], takes_lrs=False)
    arguments.add_argument("--optimizers", nargs="+", default=names, choices=names)
    arguments.add_argument(
        "--missing", action="store_true", help="only train cells that have no row yet"
    )
    options = arguments.parse_args()
    for recipe in set(options.recipes) - CENTRES.keys():
        raise SystemExit(f"recipes must be some of {', '.join(CENTRES)}, got {recipe}")
    wanted = list(cells(recipes_of(options), options.optimizers, options.seeds))
    rows = results_of(
        wanted,
        options,
        functools.partial(print, flush=True),
        only_missing=options.missing,
    )
    report(rows, options.out)


if __name__ == "__main__":
    main()
