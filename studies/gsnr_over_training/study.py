"""Is g-SNR constant over training, and does it mean anything?

Trains the small tasks with SGD-SaI and AdamW while g-SNR is measured, going on where it
was stopped, and writes results.jsonl, environment.json and the figure beside this file.
README.md says the question, the rule and the answer.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from saiopt.analysis.gsnr_plot import plot_gsnr_panels
from saiopt.lab.comparison.paired import compare_pairs, metric_of
from saiopt.lab.recipes import get_recipe, small_recipes
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, runs_of
from saiopt.lab.training.outcome import Outcome

HERE = Path(__file__).parent
RECIPES = small_recipes()
SEEDS = (1, 2, 3, 4, 5)
OPTIMIZERS = ("sgdsai", "adamw")
# Nine measurements with the last step's.
INTERVALS = 8
CLOSE = math.log(1.1)
ENOUGH = 0.95
# Below √(n-1) g-SNR is the work of ε: the gradient is rounding noise.
LEAST = 0.99
# Enough to tell g-SNR from √n in blocks of a hundred thousand entries.
DIGITS = 9
MEASURED = ("gsnr", "relative_mean", "sparsity")
MIN_FREEDOM = 4


def measured(outcome: Outcome) -> Row:
    """Collect what was measured of every block, steps and values in parallel lists."""
    blocks: dict[str, dict[str, Any]] = {}
    for line in outcome.log:
        for row in line.get("gsnr", []):
            block = blocks.setdefault(
                row["block"],
                {"numel": row["numel"], "step": []} | {name: [] for name in MEASURED},
            )
            block["step"].append(row["step"])
            for name in MEASURED:
                block[name].append(_short(row.get(name)))
    return {"blocks": blocks}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def usable(row: Row) -> list[dict[str, Any]]:
    """Return the blocks of a run that g-SNR can say something about."""
    held = []
    for block in row["blocks"].values():
        names = ("step", *MEASURED)
        kept = [
            values
            for values in zip(*(block[name] for name in names), strict=True)
            if None not in values and values[1] >= LEAST * math.sqrt(block["numel"] - 1)
        ]
        if block["numel"] > 1 and len(kept) > 1:
            columns = dict(zip(names, map(list, zip(*kept, strict=True)), strict=True))
            held.append({"numel": block["numel"], **columns})
    return held


def constancy(row: Row) -> float:
    """Return the smallest share of blocks near their first g-SNR, over the steps."""
    near: dict[int, list[bool]] = {}
    for block in usable(row):
        first = block["gsnr"][0]
        for step, value in zip(block["step"], block["gsnr"], strict=True):
            near.setdefault(step, []).append(abs(math.log(value / first)) <= CLOSE)
    return min(statistics.fmean(flags) for flags in near.values())


def correlations(rows: Sequence[Row]) -> dict[str, float]:
    """Return rank correlations over blocks, averaged over runs."""
    found: dict[str, list[float]] = {}
    for row in rows:
        blocks = usable(row)
        numel = [b["numel"] for b in blocks]
        first, last = ([b["relative_mean"][i] for b in blocks] for i in (0, -1))
        pairs = {
            "g-SNR and n": ([b["gsnr"][0] for b in blocks], numel),
            "r first and last": (first, last),
            "r and n": (first, numel),
            "r and sparsity": (first, [b["sparsity"][0] for b in blocks]),
        }
        for name, (x, y) in pairs.items():
            if len(set(x)) > 1 and len(set(y)) > 1:
                correlation: Any = spearmanr(x, y)
                found.setdefault(name, []).append(float(correlation.statistic))
    return {name: statistics.fmean(values) for name, values in found.items()}


def prediction(rows: Iterable[Row]) -> str:
    """Correlate what g-SNR adds to √n with how well training ends."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = metric_of(row)
        if value is None:
            continue
        sign = 1 if get_recipe(row["recipe"]).metric.higher_is_better else -1
        excess = statistics.fmean(
            math.log(b["gsnr"][0] / math.sqrt(b["numel"])) for b in usable(row)
        )
        pairs.setdefault(row["recipe"], []).append((excess, sign * value))
    # Within a recipe, in units of its spread: tasks differ for other reasons.
    several = [found for found in pairs.values() if len(found) > 1]
    points = [
        point
        for found in several
        for point in zip(*map(standardised, zip(*found, strict=True)), strict=True)
    ]
    # A mean per recipe was taken out.
    freedom = len(points) - len(several) - 2
    if freedom < MIN_FREEDOM:
        return f"too few runs (n={len(points)})"
    x, y = zip(*points, strict=True)
    correlation = statistics.correlation(x, y)
    width = 1.96 / math.sqrt(freedom)
    low, high = (math.tanh(math.atanh(correlation) + d) for d in (-width, width))
    return f"{correlation:+.2f} [{low:+.2f}, {high:+.2f}] (n={len(points)})"


def standardised(values: Sequence[float]) -> list[float]:
    """Return values with mean 0 and deviation 1."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / (spread or 1.0) for value in values]


def report(rows: Sequence[Row], out: Path) -> None:
    """Print constancy, correlations and prediction; draw every block's course."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for recipe in recipes:
        mine = [row for row in rows if row["recipe"] == recipe]
        shares = [constancy(row) for row in mine]
        ratios = sorted(
            b["gsnr"][0] / math.sqrt(b["numel"]) for row in mine for b in usable(row)
        )
        print(
            f"{recipe:<17}near their first: {min(shares):.3f} of blocks at least, "
            f"{'constant' if min(shares) >= ENOUGH else 'not constant'}; g-SNR/√n at "
            f"first: median {statistics.median(ratios):.4f}, "
            f"largest {ratios[-1]:.3f}"
        )
        print(f"{'':<17}over adamw: {compare_pairs(rows, recipe, *OPTIMIZERS)}")
        trained = [row for row in mine if row["optimizer"] == "sgdsai"]
        for name, value in correlations(trained).items():
            print(f"{'':<17}{name}: {value:+.2f}")
    sgdsai = [row for row in rows if row["optimizer"] == "sgdsai"]
    print("excess over √n and final metric:", prediction(sgdsai))
    panels = {
        recipe: [
            (b["numel"], [s / b["step"][-1] for s in b["step"]], b["gsnr"])
            for row in sgdsai
            if row["recipe"] == recipe and row["seed"] == min(r["seed"] for r in sgdsai)
            for b in usable(row)
        ]
        for recipe in recipes
    }
    plot_gsnr_panels(panels, [out / f"courses.{suffix}" for suffix in ("png", "svg")])


def main() -> None:
    """Run the study."""
    options = parser(__doc__ or "", HERE, RECIPES, SEEDS).parse_args()
    cells = [
        Cell(
            dataclasses.replace(run, gsnr_every=math.ceil(run.recipe.steps / INTERVALS))
        )
        for run in runs_of(options, OPTIMIZERS)
    ]
    rows = results_of(
        cells, options, functools.partial(print, flush=True), extract=measured
    )
    report(rows, options.out)


if __name__ == "__main__":
    main()
