"""What the recipes are, for a user who must choose one."""

from collections.abc import Iterable, Mapping

from rich.table import Table

from saiopt.lab.recipe import Recipe


def recipe_table(recipes: Mapping[str, Recipe]) -> Table:
    """Lay out one row per recipe.

    Args:
        recipes: By name.

    Returns:
        The table.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("recipe", "what it trains", "metric"):
        table.add_column(column, no_wrap=column == "recipe")
    table.add_column("steps", justify="right")
    for name, recipe in recipes.items():
        table.add_row(name, recipe.description, recipe.metric.name, str(recipe.steps))
    return table


def lr_table(recipes: Iterable[Recipe]) -> Table:
    """Lay out the learning rates, one row per optimizer and one column per recipe.

    Args:
        recipes: The columns.

    Returns:
        The table.
    """
    recipes = list(recipes)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("lr of")
    for recipe in recipes:
        table.add_column(recipe.name, justify="right")
    for optimizer in dict.fromkeys(name for recipe in recipes for name in recipe.lrs):
        cells = [recipe.lrs.get(optimizer) for recipe in recipes]
        table.add_row(optimizer, *("" if lr is None else f"{lr:g}" for lr in cells))
    return table
