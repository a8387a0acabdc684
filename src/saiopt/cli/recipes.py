"""``saiopt recipes``."""

import dataclasses
from typing import Annotated

from tyro.conf import Positional, arg

from saiopt.cli.output import new_console, print_json, print_tables
from saiopt.cli.refusal import refusing


@dataclasses.dataclass(frozen=True)
class Recipes:
    """List what can be trained, or tell all about some recipes.

    Args:
        recipes: Those to tell about.
        json: Print JSON only.
    """

    recipes: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[RECIPE ...]", help_behavior_hint="(default: all, in short)"),
    ] = ()
    json: Annotated[bool, arg(help_behavior_hint="")] = False

    def __call__(self) -> None:
        """Print the tables."""
        from saiopt.lab.recipes import RECIPES, get_recipe
        from saiopt.lab.recipes.recipe_table import (
            as_json,
            field_table,
            lr_table,
            recipe_table,
            recipe_text,
        )

        with refusing(ValueError):
            recipes = [get_recipe(name) for name in self.recipes or RECIPES]
        if self.json:
            print_json([as_json(recipe) for recipe in recipes])
            return
        console = new_console()
        if self.recipes:
            for recipe in recipes:
                console.print(recipe_text(recipe))
                console.print()
                print_tables(console, field_table(recipe))
                console.print()
            print_tables(console, lr_table(recipes))
            return
        headings = {
            "small": "in minutes",
            "medium": "in hours",
            "published": "the paper's size",
        }
        print_tables(
            console,
            *(
                recipe_table(heading, [r for r in recipes if r.size == size])
                for size, heading in headings.items()
            ),
            lr_table(recipes),
        )
