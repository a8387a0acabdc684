"""Does SGD-SaI suit LoRA, and what does calibrating A late change?

Trains SGD-SaI and its rivals, each at its tuned learning rate, from the same
seeds, going on where it was stopped, and writes results.jsonl, environment.json and the
figure beside this file. README.md says the question, the rule and the answer.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from saiopt.lab.comparison.paired import compare_pairs, draw_gains, mean_metric
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, runs_of

HERE = Path(__file__).parent
RECIPES = ("lora-pydoc", "lora-ddpm-digits")
# Seed 0 chose the learning rates.
SEEDS = (1, 2, 3, 4, 5)
# One against another.
PAIRS = (
    ("sgdsai", "sgdsai-frozen-a"),
    ("adamw", "adamw-frozen-a"),
    ("sgdsai", "adamw"),
    ("sgdsai", "scaled-gd"),
    ("sgdsai", "scaled-adamw"),
    ("sgdsai", "sgdm-decoupled"),
    ("sgdsai", "sgdsai-sqrt-numel"),
    ("sgdsai-frozen-a", "adamw-frozen-a"),
)
OPTIMIZERS = tuple(dict.fromkeys(name for pair in PAIRS for name in pair))


def report(rows: Sequence[Row], out: Path) -> None:
    """Print means and paired gains, and draw the gains."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for recipe in recipes:
        for optimizer in OPTIMIZERS:
            found = mean_metric(rows, recipe, optimizer)
            print(f"{recipe:<18}{optimizer:<20}{found}")
    found = [compare_pairs(rows, recipe, *pair) for recipe in recipes for pair in PAIRS]
    for comparison in found:
        name = f"{comparison.optimizer} over {comparison.control}"
        print(f"{comparison.recipe:<18}{name:<36}{comparison}")
    paths = [out / f"gains.{suffix}" for suffix in ("png", "svg")]
    draw_gains(found, lambda c: f"{c.optimizer} over {c.control}", paths)


def main() -> None:
    """Run the study."""
    options = parser(__doc__ or "", HERE, RECIPES, SEEDS).parse_args()
    cells = [Cell(run) for run in runs_of(options, OPTIMIZERS)]
    rows = results_of(cells, options, functools.partial(print, flush=True))
    report(rows, options.out)


if __name__ == "__main__":
    main()
