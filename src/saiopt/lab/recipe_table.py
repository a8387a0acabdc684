"""What the recipes are, for a user who must choose one."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from saiopt.lab.recipe import Recipe, settable

_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)


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


def recipe_text(recipe: Recipe) -> str:
    """Say what a recipe is and where its data comes from.

    Args:
        recipe: Any.

    Returns:
        Name, description, data, metric, and how to change its fields.
    """
    better = "higher" if recipe.metric.higher_is_better else "lower"
    return (
        f"{recipe.name}: {recipe.description}\n"
        f"data: {_first_line(type(recipe.task).load)}\n"
        f"metric: {recipe.metric.label}, {better} is better\n"
        f"optimizer unless another is asked for: {recipe.optimizer}\n"
        "A field is changed by --set NAME=VALUE."
    )


def field_table(recipe: Recipe) -> Table:
    """Lay out one row per field that can be set.

    Args:
        recipe: Any.

    Returns:
        The table.
    """
    table = _table()
    table.add_column("field", no_wrap=True)
    table.add_column("value", no_wrap=True)
    table.add_column("meaning")
    meanings = _meanings(recipe, "") | _meanings(recipe.task, "task.")
    for name, value in settable(recipe).items():
        table.add_row(name, _text(value), meanings.get(name, ""))
    return table


def as_json(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON types.

    Args:
        recipe: Any.

    Returns:
        What :func:`recipe_text`, :func:`field_table` and :func:`lr_table` show.
    """
    return {
        "name": recipe.name,
        "description": recipe.description,
        "size": recipe.size,
        "data": _first_line(type(recipe.task).load),
        "metric": dataclasses.asdict(recipe.metric),
        "optimizer": recipe.optimizer,
        "fields": settable(recipe),
        "lrs": dict(recipe.lrs),
    }


def _meanings(described: object, prefix: str) -> dict[str, str]:
    """Return what a docstring says of each field, without its markup."""
    arguments = (inspect.getdoc(described) or "").partition("\nArgs:\n")[2]
    found = _ARGUMENT.findall(arguments.partition("\n\n")[0])
    return {
        prefix + name: " ".join(text.replace("``", "").split()) for name, text in found
    }


def _first_line(function: object) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim")
