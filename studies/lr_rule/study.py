"""Can the first updates tell SGD-SaI's learning rate?

Proposes learning rates for all small recipes and writes results.jsonl, environment.json
and the figure beside this file. README.md says the question, the rule and the answer.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.environment import environment
from saiopt.lab.identity import code_hash
from saiopt.lab.intervals import estimate
from saiopt.lab.lr_rule import USUAL_ADAMW_LR, propose
from saiopt.lab.recipes import get_recipe

HERE = Path(__file__).parent
CPU = torch.device("cpu")
RECIPES = (
    "gpt-stdlib",
    "vit-digits",
    "resnet-digits",
    "lora-pydoc",
    "ddpm-digits",
    "lora-ddpm-digits",
)
OPTIMIZERS = ("sgdsai", "sgdsai-sqrt-numel")
DEFAULT_LR = 0.01
RATIO = 5.0
RULES = {
    "from_adamw": "from AdamW's",
    "from_nothing": "from nothing",
    "default": "always 0.01",
    "ratio": "five times AdamW's",
}


def proposals(name: str, optimizer: str) -> dict[str, Any]:
    """Return a row: the swept learning rate and what every rule proposes."""
    recipe = get_recipe(name)
    task = recipe.task.load()
    adamw = recipe.lrs["adamw"]
    return {
        "recipe": name,
        "optimizer": optimizer,
        "swept": recipe.lrs[optimizer],
        "adamw": adamw,
        "from_adamw": propose(recipe, task, optimizer, "adamw", adamw, CPU).lr,
        "from_nothing": propose(
            recipe, task, optimizer, "adamw", USUAL_ADAMW_LR, CPU
        ).lr,
        "default": DEFAULT_LR,
        "ratio": RATIO * adamw,
    }


def origin_of(name: str) -> dict[str, Any]:
    """Return where the proposals for a recipe are made."""
    config = get_recipe(name).task
    code = code_hash(propose.__module__, type(config).__module__)
    return environment(CPU, config.load().fingerprint, code)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the errors and their differences, and draw them."""
    panels: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for optimizer in OPTIMIZERS:
        mine = [row for row in rows if row["optimizer"] == optimizer]
        for row in mine:
            factors = "  ".join(f"{row[r] / row['swept']:>5.2g}" for r in RULES)
            print(f"{row['recipe']:<17}{optimizer:<18}{row['swept']:<6g}{factors}")
        errors = {r: [math.log2(row[r] / row["swept"]) for row in mine] for r in RULES}
        sizes = {r: [abs(e) for e in found] for r, found in errors.items()}
        for rule, found in sizes.items():
            gains = [
                other - own
                for own, other in zip(sizes["from_adamw"], found, strict=True)
            ]
            difference = estimate(gains)
            print(
                f"{optimizer:<18}{RULES[rule]:<19}mean error "
                f"{statistics.fmean(found):.2f}; from AdamW's is smaller by "
                f"{difference.mean:+.2f} ± {difference.half_width:.2f} "
                f"(n={difference.count})"
            )
        panels[optimizer] = {RULES[r]: found for r, found in errors.items()}
        intervals[optimizer] = {
            RULES[r]: (estimate(found).mean, estimate(found).half_width or 0.0)
            for r, found in errors.items()
        }
    paths = [HERE / f"errors.{suffix}" for suffix in ("png", "svg")]
    labels: dict[str, str] = dict.fromkeys(OPTIMIZERS, "log₂(proposed / swept)")
    plot_differences(panels, intervals, labels, paths)


def main() -> None:
    """Run the study."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [proposals(name, optimizer) for name in RECIPES for optimizer in OPTIMIZERS]
    where = {name: origin_of(name) for name in RECIPES}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (HERE / "results.jsonl").write_text(lines)
    (HERE / "environment.json").write_text(json.dumps(where, indent=2) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
