"""Can the first updates tell SGD-SaI's learning rate?

Proposes learning rates for all small recipes and writes results.jsonl, environment.json
and the figures beside this file. README.md says the question, the rule and the answer.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.identity import code_hash
from saiopt.lab.measurement.lr_rule import USUAL_ADAMW_LR, propose
from saiopt.lab.recipes import get_recipe, small_recipes
from saiopt.lab.training.environment import environment

HERE = Path(__file__).parent
CPU = torch.device("cpu")
RECIPES = small_recipes()
DEFAULT_LR = 0.01
# AdamW's learning rate times these.
RATIOS = {"same": 1.0, "twice": 2.0, "ratio": 5.0}
_PUBLISHED = ("from_adamw", "from_nothing", "default", "ratio")
_FINER = ("from_adamw", "same", "twice", "ratio", "default")
# What is asked of each optimizer; the first is held against the others.
RULES_OF = {
    "sgdsai": _PUBLISHED,
    "sgdsai-sqrt-numel": _PUBLISHED,
    "sgdsai-orthogonal": _FINER,
    "sgdsai-factored": _FINER,
}
LABELS = {
    "from_adamw": "from AdamW's",
    "from_nothing": "from nothing",
    "default": "always 0.01",
    "same": "AdamW's",
    "twice": "twice AdamW's",
    "ratio": "five times AdamW's",
}


def proposals(name: str, optimizer: str) -> dict[str, Any]:
    """Return a row: the swept learning rate and what every rule proposes."""
    recipe = get_recipe(name)
    task = recipe.task.load()
    adamw = recipe.lrs["adamw"]
    rules = RULES_OF[optimizer]
    known = {"from_adamw": adamw, "from_nothing": USUAL_ADAMW_LR}
    measured = {
        rule: propose(recipe, task, optimizer, "adamw", lr, CPU).lr
        for rule, lr in known.items()
        if rule in rules
    }
    told = {rule: ratio * adamw for rule, ratio in RATIOS.items()}
    found = {**measured, **told, "default": DEFAULT_LR}
    return {
        "recipe": name,
        "optimizer": optimizer,
        "swept": recipe.lrs[optimizer],
        "adamw": adamw,
        **{rule: found[rule] for rule in rules},
    }


def origin_of(name: str) -> dict[str, Any]:
    """Return where the proposals for a recipe are made."""
    config = get_recipe(name).task
    code = code_hash(propose.__module__, type(config).__module__)
    return environment(CPU, config.load().fingerprint, code)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the errors and their differences, and draw them."""
    draw(rows, _PUBLISHED, "errors")
    draw(rows, _FINER, "errors_finer")
    for optimizer, rules in RULES_OF.items():
        mine = [row for row in rows if row["optimizer"] == optimizer]
        print(f"\n{optimizer}: swept, then proposed over swept of {', '.join(rules)}")
        for row in mine:
            factors = "  ".join(f"{row[r] / row['swept']:>5.2g}" for r in rules)
            print(f"{row['recipe']:<17}{row['swept']:<6g}{factors}")
        sizes = {r: [abs(e) for e in found] for r, found in errors_of(mine).items()}
        for rule, found in sizes.items():
            print(f"{LABELS[rule]:<19}mean error {statistics.fmean(found):.2f}", end="")
            print("" if rule == rules[0] else gain_of(sizes[rules[0]], found))
        print(f"best of the others, chosen without the task: {left_out(sizes):.2f}")


def errors_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the errors in doublings on each task, of every rule that was asked."""
    rules = RULES_OF[rows[0]["optimizer"]]
    return {r: [math.log2(row[r] / row["swept"]) for row in rows] for r in rules}


def draw(rows: Sequence[dict[str, Any]], rules: tuple[str, ...], name: str) -> None:
    """Draw the errors of the optimizers of which these rules were asked."""
    panels: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for optimizer in (o for o, asked in RULES_OF.items() if asked == rules):
        found = errors_of([row for row in rows if row["optimizer"] == optimizer])
        panels[optimizer] = {LABELS[r]: errors for r, errors in found.items()}
        intervals[optimizer] = {
            LABELS[r]: (estimate(errors).mean, estimate(errors).half_width or 0.0)
            for r, errors in found.items()
        }
    paths = [HERE / f"{name}.{suffix}" for suffix in ("png", "svg")]
    labels: dict[str, str] = dict.fromkeys(panels, "log₂(proposed / swept)")
    plot_differences(panels, intervals, labels, paths)


def gain_of(own: Sequence[float], others: Sequence[float]) -> str:
    """Return by how much the first rule's errors are smaller."""
    gain = estimate([other - mine for mine, other in zip(own, others, strict=True)])
    return f"; the first's is smaller by {gain.mean:+.2f} ± {gain.half_width:.2f}"


def left_out(sizes: dict[str, list[float]]) -> float:
    """Return the mean error of the rule that was best on the other tasks.

    A rule that is chosen because it is best on six tasks looks better on them than it
    will on a seventh.
    """
    cheap = [found for rule, found in sizes.items() if not rule.startswith("from")]
    errors = []
    for left in range(len(cheap[0])):
        others = [sum(found) - found[left] for found in cheap]
        errors.append(cheap[others.index(min(others))][left])
    return statistics.fmean(errors)


def main() -> None:
    """Run the study."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [proposals(name, optimizer) for name in RECIPES for optimizer in RULES_OF]
    where = {name: origin_of(name) for name in RECIPES}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (HERE / "results.jsonl").write_text(lines)
    (HERE / "environment.json").write_text(json.dumps(where, indent=2) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
