"""What the recipes are, for a user who must choose one."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Any

from saiopt.lab.recipe import Recipe, settable
from saiopt.lab.table import Column, TextTable, text_columns

_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)


def recipe_table(heading: str, recipes: Iterable[Recipe]) -> TextTable:
    """Lay out one row per recipe.

    Args:
        heading: What the recipes have in common.
        recipes: The rows.

    Returns:
        The table.
    """
    return TextTable(
        [
            Column(heading, lambda recipe: recipe.name),
            Column("parameters, data", lambda r: r.description, wraps=True),
            Column("metric", lambda recipe: recipe.metric.name, wraps=True),
            Column("steps", lambda recipe: f"{recipe.steps:,}", is_number=True),
        ],
        list(recipes),
    )


def lr_table(recipes: Iterable[Recipe]) -> TextTable:
    """Lay out the learning rates, one row per recipe.

    Args:
        recipes: The rows; those without a learning rate are left out.

    Returns:
        The table.
    """
    return TextTable(
        [
            Column("recipe", lambda recipe: recipe.name),
            Column("learning rates", _lrs, wraps=True),
        ],
        [recipe for recipe in recipes if recipe.lrs],
    )


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


def field_table(recipe: Recipe) -> TextTable:
    """Lay out one row per field that can be set.

    Args:
        recipe: Any.

    Returns:
        The table.
    """
    meanings = _meanings(recipe, "") | _meanings(recipe.task, "task.")
    rows = [
        (name, _text(value), meanings.get(name, ""))
        for name, value in settable(recipe).items()
    ]
    return TextTable(
        text_columns("field", "value", "meaning", wrapping=["meaning"]), rows
    )


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


def _lrs(recipe: Recipe) -> str:
    # Unbreakable within a pair.
    return ", ".join(
        f"{name}\N{NO-BREAK SPACE}{lr:g}" for name, lr in recipe.lrs.items()
    )
