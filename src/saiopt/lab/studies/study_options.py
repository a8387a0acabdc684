"""The command line that all studies share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from saiopt.lab.comparison.compare import plan
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.training.run import Run


def parser(
    description: str,
    folder: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    takes_lrs: bool = True,
) -> argparse.ArgumentParser:
    """Build the command line that all studies share.

    Args:
        description: The script's docstring.
        folder: Of the study.
        recipes: Default recipes.
        seeds: Default seeds.
        takes_lrs: Whether its runs come from :func:`runs_of`.

    Returns:
        A parser of ``recipes``, ``seeds``, ``set``, ``out``, ``runs_dir``, ``workers``,
        ``device`` and ``draw``, and of ``lr`` where runs take it.
    """
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--recipes", nargs="+", default=list(recipes), metavar="RECIPE")
    made.add_argument("--seeds", nargs="+", type=int, default=list(seeds), metavar="N")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="fields of recipes"
    )
    made.add_argument(
        "--out", type=Path, default=folder, metavar="PATH", help="for rows and figures"
    )
    runs_dir = Path("runs") / folder.name
    made.add_argument("--runs-dir", type=Path, default=runs_dir, metavar="PATH")
    made.add_argument("--workers", type=int, default=2, help="processes", metavar="N")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    made.add_argument(
        "--draw",
        action="store_true",
        help="train nothing, take the rows that are there",
    )
    if takes_lrs:
        made.add_argument(
            "--lr",
            nargs="+",
            default=[],
            metavar="NAME=LR",
            help="learning rates of optimizers instead of the recipes'",
        )
    return made


def recipes_of(options: argparse.Namespace) -> list[Recipe]:
    """Return the recipes that a study's command line names, with its settings.

    Args:
        options: What the command line says.

    Returns:
        One recipe per name.

    Raises:
        SystemExit: If a setting is given without a folder for its rows, which are not
            those of the study, or is wrong.
    """
    _require_folder(options, "set")
    try:
        settings = _pairs("set", options.set)
        return [override(get_recipe(name), settings) for name in options.recipes]
    except ValueError as error:
        raise SystemExit(str(error)) from None


def runs_of(options: argparse.Namespace, optimizers: Sequence[str]) -> list[Run]:
    """List a study's runs at the recipes' learning rates, or at those that are given.

    Args:
        options: What its command line says.
        optimizers: Names.

    Returns:
        One run per recipe, seed and optimizer.

    Raises:
        SystemExit: As :func:`recipes_of`, for ``lr`` too, or if a recipe lacks a
            learning rate.
    """
    _require_folder(options, "lr")
    try:
        lrs = {name: _lr(text) for name, text in _pairs("lr", options.lr).items()}
        return [
            run
            for recipe in recipes_of(options)
            for run in plan(recipe, optimizers, options.seeds, lrs)
        ]
    except ValueError as error:
        raise SystemExit(str(error)) from None


def _require_folder(options: argparse.Namespace, name: str) -> None:
    if getattr(options, name) and (options.out / "study.py").exists():
        raise SystemExit(f"out must name another folder than the study's with {name}")


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise ValueError(f"{option} must be NAME=VALUE, got {text}")
    return dict(text.split("=", 1) for text in texts)


def _lr(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"lr must be a number, got {text}") from None
