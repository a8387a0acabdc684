"""Recipes, baselines and the training loop that compares optimizers.

The names below are what a notebook needs; ``docs/lab.md`` shows them. They are loaded
when they are asked for, because a command that only lists recipes must not load a model
library. Everything else is imported from its module, such as
``saiopt.lab.comparison.compare``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .notebook import compare_optimizers as compare_optimizers
    from .notebook import find_rates as find_rates
    from .notebook import list_runs as list_runs
    from .notebook import report_runs as report_runs
    from .notebook import train_optimizer as train_optimizer
    from .own.recipe import own_recipe as own_recipe

_HOMES = {
    "compare_optimizers": "notebook",
    "find_rates": "notebook",
    "list_runs": "notebook",
    "own_recipe": "own.recipe",
    "report_runs": "notebook",
    "train_optimizer": "notebook",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has the name
    if name in _HOMES:
        return getattr(importlib.import_module(f"saiopt.lab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'saiopt.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
