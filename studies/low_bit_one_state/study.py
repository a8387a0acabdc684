"""Does momentum in 16, 8 or 4 bits cost the finer rules anything?

Trains both rules with all four momenta from the same seeds, going on where it was
stopped, and writes results.jsonl, environment.json and the figure beside this file.
README.md says the question, the rule and the answer.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from saiopt.lab.comparison.paired import Pairing, compare_pairs, draw_gains
from saiopt.lab.recipe import Recipe
from saiopt.lab.studies.ledger import Row
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, recipes_of
from saiopt.lab.training.run import Run

HERE = Path(__file__).parent
RECIPES = ("gpt-stdlib", "vit-digits", "lora-pydoc")
# Seed 0 chose the learning rates.
SEEDS = (1, 2, 3, 4, 5)
RULES = ("sgdsai-orthogonal", "sgdsai-factored")
# In the order in which they train.
DTYPES = ("float32", "int4", "int8", "bf16")
# The batch is this many times the recipe's, the steps are as many times fewer.
BATCHES = {"gpt-stdlib": (1, 4), "vit-digits": (1, 4), "lora-pydoc": (1,)}


def name_of(rule: str, dtype: str) -> str:
    """Return the lab's name of a rule with a momentum."""
    return rule if dtype == "float32" else f"{rule}-{dtype}"


def with_batch(recipe: Recipe, factor: int) -> Recipe:
    """Return a recipe with a larger batch on as many examples in all."""
    return dataclasses.replace(
        recipe, batch_size=factor * recipe.batch_size, steps=recipe.steps // factor
    )


def cells(
    recipes: Sequence[Recipe], dtypes: Sequence[str], seeds: Sequence[int]
) -> Iterator[Cell]:
    """Yield the cells, those that answer most first."""
    for dtype in dtypes:
        for recipe in recipes:
            for factor in BATCHES[recipe.name]:
                larger = with_batch(recipe, factor)
                for seed in seeds:
                    for rule in RULES:
                        name = name_of(rule, dtype)
                        run = Run(larger, name, recipe.lrs[rule], seed)
                        yield Cell(run, {"batch": factor})


def comparisons(rows: Sequence[Row]) -> Iterator[tuple[int, Pairing]]:
    """Yield the size of the batch, and a momentum against float32."""
    for recipe, factors in BATCHES.items():
        for factor in factors:
            mine = [row for row in rows if row["labels"]["batch"] == factor]
            for rule in RULES:
                for dtype in DTYPES[1:]:
                    name = name_of(rule, dtype)
                    found = compare_pairs(mine, recipe, name, rule)
                    if found.gains or found.num_diverged:
                        yield factor, found


def report(rows: Sequence[Row], out: Path) -> None:
    """Print what every momentum gains over float32, and draw it."""
    found = list(comparisons(rows))
    for factor, comparison in found:
        where = f"{comparison.recipe}, batches of {factor}"
        print(f"{where:<27}{comparison.optimizer:<26}{comparison}")
    factors = {id(comparison): factor for factor, comparison in found}
    paths = [out / f"gains.{suffix}" for suffix in ("png", "svg")]
    draw_gains(
        [comparison for _, comparison in found],
        lambda c: f"{c.optimizer.removeprefix('sgdsai-')}, batches of {factors[id(c)]}",
        paths,
    )


def main() -> None:
    """Run the study."""
    options_of = parser(__doc__ or "", HERE, RECIPES, SEEDS)
    options_of.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    options_of.add_argument(
        "--missing", action="store_true", help="only train cells that have no row yet"
    )
    options = options_of.parse_args()
    wanted = list(cells(recipes_of(options), options.dtypes, options.seeds))
    say = functools.partial(print, flush=True)
    rows = results_of(wanted, options, say, only_missing=options.missing)
    report(rows, options.out)


if __name__ == "__main__":
    main()
