"""What the recipes are, for a user who must choose one."""

from collections.abc import Iterable

from rich.table import Table

from saiopt.lab.recipe import Recipe


def recipe_table(heading: str, recipes: Iterable[Recipe]) -> Table:
    """Lay out one row per recipe.

    Args:
        heading: What the recipes have in common.
        recipes: The rows.

    Returns:
        The table.
    """
    table = _table()
    for column in (heading, "parameters, data", "metric"):
        table.add_column(column, no_wrap=column == heading)
    table.add_column("steps", justify="right")
    for recipe in recipes:
        steps = f"{recipe.steps:,}"
        table.add_row(recipe.name, recipe.description, recipe.metric.name, steps)
    return table


def lr_table(recipes: Iterable[Recipe]) -> Table:
    """Lay out the learning rates, one row per recipe.

    Args:
        recipes: The rows; those without a learning rate are left out.

    Returns:
        The table.
    """
    table = _table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("learning rates")
    for recipe in recipes:
        if recipe.lrs:
            # Unbreakable within a pair.
            pairs = (
                f"{name}\N{NO-BREAK SPACE}{lr:g}" for name, lr in recipe.lrs.items()
            )
            table.add_row(recipe.name, ", ".join(pairs))
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim")
