"""``saiopt recipes``."""

import dataclasses

from saiopt.cli.output import new_console


@dataclasses.dataclass(frozen=True)
class Recipes:
    """List what can be trained, with the learning rates that were found for it."""

    def __call__(self) -> None:
        """Print the tables."""
        from saiopt.lab.recipe_table import lr_table, recipe_table
        from saiopt.lab.recipes import RECIPES

        recipes = [build() for build in RECIPES.values()]
        small = [recipe for recipe in recipes if recipe.size == "small"]
        published = [recipe for recipe in recipes if recipe.size == "published"]
        console = new_console()
        console.print(recipe_table("in minutes", small))
        console.print()
        console.print(recipe_table("the paper's size", published))
        console.print()
        console.print(lr_table(recipes))
