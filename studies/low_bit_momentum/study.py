"""Does momentum in 16, 8 or 4 bits cost anything?

Trains every variant from the same seeds, going on where it was stopped, and writes
results.jsonl, environment.json and the figure beside this file. README.md says the
question, the rule and the answer.
"""

import argparse
import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.identity import identity_hash
from saiopt.lab.recipes import get_recipe
from saiopt.lab.studies.processes import in_processes
from saiopt.lab.training.environment import environment
from saiopt.lab.training.outcome import carry_out, code_of
from saiopt.lab.training.run import Run
from saiopt.low_bit import Code, using

HERE = Path(__file__).parent
CPU = torch.device("cpu")
RECIPES = ("gpt-stdlib", "vit-digits")
# Optimizer and code by variant; without a code the shipped one.
VARIANTS: dict[str, tuple[str, Code | None]] = {
    "float32": ("sgdsai", None),
    "bfloat16": ("sgdsai-bf16", None),
    "int8": ("sgdsai-int8", None),
    "int4": ("sgdsai-int4", None),
    "int8, square-root": ("sgdsai-int8", Code(8, companded=True)),
    "int4, square-root": ("sgdsai-int4", Code(4, companded=True)),
    "int8, groups of 128": ("sgdsai-int8", Code(8, group_size=128)),
    "int4, groups of 128": ("sgdsai-int4", Code(4, group_size=128)),
}


def train_cell(recipe: str, variant: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train one cell and return its row."""
    torch.set_num_threads(1)
    optimizer, code = VARIANTS[variant]
    settings = get_recipe(recipe)
    run = Run(settings, optimizer, settings.lrs["sgdsai"], seed)
    # The code is no setting of the optimizer, so each variant has its own folder.
    folder = runs / variant.replace(", ", "-").replace(" ", "-")
    with using(code) if code else contextlib.nullcontext():
        outcome = carry_out(run, settings.task.load(), folder, CPU, lambda _: None)
    result = outcome.result
    return {
        "recipe": recipe,
        "variant": variant,
        "seed": seed,
        "status": result["status"],
        "state_bytes_per_parameter": result["state_bytes"] / result["num_parameters"],
        settings.metric.name: outcome.value,
    }


def train_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train all cells in worker processes of one thread each, shipped codes first."""
    wanted = [
        (recipe, variant, seed)
        for variant in options.variants
        for recipe in options.recipes
        for seed in options.seeds
    ]
    rows: list[dict[str, Any]] = []
    jobs = [(*cell, options.runs_dir) for cell in wanted]
    for row in in_processes(train_cell, jobs, options.workers):
        rows.append(row)
        print(f"{len(rows)}/{len(wanted)}", json.dumps(row), flush=True)
    return rows


def held_rows() -> list[dict[str, Any]]:
    """Return the rows that were made before."""
    path = HERE / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return list(map(json.loads, lines))


def together(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of all parts by variant; later parts replace earlier ones."""
    found = {
        (row["variant"], row["recipe"], row["seed"]): row
        for part in parts
        for row in part
    }
    order = [
        (variant, recipe, seed)
        for variant in VARIANTS
        for recipe in RECIPES
        for seed in sorted({seed for *_, seed in found})
    ]
    return [found[cell] for cell in order if cell in found]


def origin_of(name: str) -> dict[str, Any]:
    """Return where the runs of a recipe are made."""
    recipe = get_recipe(name)
    task = recipe.task.load()
    return environment(CPU, task.fingerprint, code_of(recipe, task))


def report(rows: list[dict[str, Any]]) -> None:
    """Print the difference of every variant from float32, and draw it."""
    panels: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    labels: dict[str, str] = {}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        metric = get_recipe(recipe).metric
        values = {
            (row["variant"], row["seed"]): row[metric.name]
            for row in rows
            if row["recipe"] == recipe
        }
        seeds = sorted({seed for _, seed in values})
        labels[recipe] = f"difference in {metric.label}"
        for variant in list(VARIANTS)[1:]:
            both = [s for s in seeds if {(variant, s), ("float32", s)} <= values.keys()]
            if not both:
                continue
            pairs = [values[variant, s] - values["float32", s] for s in both]
            found = estimate(pairs)
            panels.setdefault(recipe, {})[variant] = pairs
            interval = (found.mean, found.half_width or 0.0)
            intervals.setdefault(recipe, {})[variant] = interval
            mean = statistics.fmean(values[variant, s] for s in both)
            print(
                f"{recipe:<12}{variant:<22}{mean:.4f}"
                f"{interval[0]:>+9.4f} ± {interval[1]:.4f} (n={found.count})"
            )
    if panels:
        paths = [HERE / f"differences.{suffix}" for suffix in ("png", "svg")]
        plot_differences(panels, intervals, labels, paths)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/low_bit_momentum"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    fresh = train_all(options)
    torch.set_num_threads(1)
    path = HERE / "environment.json"
    origins = json.loads(path.read_text()) if path.exists() else {}
    for name in options.recipes:
        origin = origin_of(name)
        origins[identity_hash(origin)] = origin
        for row in fresh:
            if row["recipe"] == name:
                row["environment"] = identity_hash(origin)
    rows = together(held_rows(), fresh)
    used = {row["environment"] for row in rows}
    kept = {key: origin for key, origin in origins.items() if key in used}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (HERE / "results.jsonl").write_text(lines)
    path.write_text(json.dumps(kept, indent=2) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
