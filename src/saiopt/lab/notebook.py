"""The lab from Python, as a notebook calls it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from torch.optim import Optimizer

from saiopt.lab.comparison.compare import Comparison, compare, plan, prepare
from saiopt.lab.comparison.comparison_table import as_text
from saiopt.lab.own.optimizer import optimizer_names
from saiopt.lab.own.recipe import recipe_at
from saiopt.lab.own.reference import is_reference
from saiopt.lab.recipe import Recipe, usual_optimizers
from saiopt.lab.recipes import get_recipe
from saiopt.lab.report.run_table import find_runs
from saiopt.lab.report.sources import find_sources
from saiopt.lab.report.write import write_report
from saiopt.lab.sweep.findings import Findings, gather
from saiopt.lab.sweep.plan import Sweep, lrs_around
from saiopt.lab.sweep.table import cell_line
from saiopt.lab.sweep.workers import Place, boards, work_off
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.progress import display

Optimizers: TypeAlias = "Sequence[str | Callable[..., Optimizer]]"
_RUNS = Path("runs")


def compare_optimizers(
    recipe: Recipe | str,
    optimizers: Optimizers = (),
    seeds: Sequence[int] = (0,),
    lrs: Mapping[str, float] | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    weight_decays: Mapping[str, float] | None = None,
    runs_dir: Path | str = _RUNS,
    device: str | None = None,
) -> Comparison:
    """Train the same model from the same seeds with several optimizers.

    What ``saiopt compare`` does: finished runs are reused, interrupted ones go on.

    Args:
        recipe: From :func:`saiopt.lab.own_recipe`, or the name of a shipped one.
        optimizers: Names, ``file.py:name``, or functions of ``params`` or ``model``;
            none for the recipe's usual ones.
        seeds: Of initial weights and data order.
        lrs: Learning rates by name instead of the recipe's.
        settings: By name, instead of the optimizer's usual ones.
        weight_decays: λ by name, instead of the recipe's decay per step over lr.
        runs_dir: Keeps the runs.
        device: Such as ``"cpu"``; None for a GPU if there is one.

    Returns:
        The comparison, whose tables have been printed: ``rows``, ``differences``,
        ``cautions``, ``folder``.

    Raises:
        ValueError: If an argument is bad.
    """
    chosen = _recipe(recipe)
    names = optimizer_names(list(optimizers)) or usual_optimizers(chosen)
    runs = plan(chosen, names, seeds, lrs or {}, settings or {}, weight_decays or {})
    task, folder = prepare(runs), _folder(runs_dir)
    console = Console(highlight=False)
    with display(runs, console) as observe:
        comparison = compare(runs, task, folder, _device(device), observe)
    console.print(as_text(comparison), soft_wrap=True)
    return comparison


def train_optimizer(
    recipe: Recipe | str,
    optimizer: str | Callable[..., Optimizer] | None = None,
    lr: float | None = None,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    weight_decay: float | None = None,
    keep_weights: bool = False,
    runs_dir: Path | str = _RUNS,
    device: str | None = None,
) -> Outcome:
    """Train one model with one optimizer.

    Args:
        recipe: As in :func:`compare_optimizers`.
        optimizer: The same; None for the recipe's.
        lr: Peak learning rate instead of the recipe's.
        seed: Of initial weights and data order.
        settings: Instead of the optimizer's usual ones.
        weight_decay: λ instead of the recipe's decay per step over lr.
        keep_weights: Whether the run's folder gets ``weights.pt``.
        runs_dir: Keeps the run.
        device: As in :func:`compare_optimizers`.

    Returns:
        The run's ``result``, ``log``, ``curve`` and ``folder``.

    Raises:
        ValueError: If an argument is bad.
    """
    chosen = _recipe(recipe)
    [name] = optimizer_names([optimizer or chosen.optimizer])
    runs = plan(
        chosen,
        [name],
        [seed],
        {} if lr is None else {name: lr},
        {} if settings is None else {name: settings},
        {} if weight_decay is None else {name: weight_decay},
    )
    task, folder, place = prepare(runs), _folder(runs_dir), _device(device)
    with display(runs, Console()) as observe:
        return carry_out(
            runs[0], task, folder, place, observe, keep_weights=keep_weights
        )


def find_rates(
    recipe: Recipe | str,
    optimizers: Optimizers = (),
    lrs: Sequence[float] = (),
    weight_decays: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    runs_dir: Path | str = _RUNS,
    device: str | None = None,
) -> Findings:
    """Search learning rate and weight decay of several optimizers on a grid.

    What ``saiopt sweep`` does, in this process.

    Args:
        recipe: As in :func:`compare_optimizers`.
        optimizers: The same.
        lrs: Of the grid; none for five around the recipe's.
        weight_decays: Of the grid; none for the recipe's decay per step over lr.
        seeds: Every cell is trained with each of them.
        settings: By optimizer, instead of its usual ones.
        runs_dir: Keeps the sweep.
        device: As in :func:`compare_optimizers`.

    Returns:
        ``findings``, one per optimizer with its ``best`` cell, and ``folder``.

    Raises:
        ValueError: If an argument is bad.
    """
    chosen = _recipe(recipe)
    names = optimizer_names(list(optimizers)) or usual_optimizers(chosen)
    given = dict.fromkeys(names, lrs[0]) if lrs else {}
    centres = {run.optimizer: run.lr for run in plan(chosen, names, (0,), given)}
    sweeps = [
        Sweep(
            chosen,
            name,
            tuple(lrs) or lrs_around(centres[name]),
            tuple(weight_decays),
            tuple(seeds),
            settings=(settings or {}).get(name, {}),
        )
        for name in names
    ]
    task = prepare([sweep.runs({"lr": sweep.lrs[0]})[0] for sweep in sweeps])
    folder = _folder(runs_dir)
    storage = f"sqlite:///{folder / 'sweeps.db'}"
    place = Place(folder, storage, _device(device), torch.get_num_threads())
    console, total = Console(highlight=False), sum(len(s.cells()) for s in sweeps)
    opened = boards(sweeps, task, place)
    done = [cell for board in opened for cell in board.cells()]

    def announce(sweep: Sweep, cell: Any) -> None:  # noqa: ANN401 - a board's
        done.append(cell)
        console.print(cell_line(sweep, cell, len(done), total), soft_wrap=True)

    work_off(sweeps, task, place, announce)
    return gather(opened, folder, None)


def list_runs(runs_dir: Path | str = _RUNS) -> list[dict[str, Any]]:
    """Return one row per finished run.

    Args:
        runs_dir: Where the runs are kept.

    Returns:
        Settings, result and origin of each; ``pandas.DataFrame(list_runs())`` makes a
        table of them.
    """
    return find_runs([Path(runs_dir)]).rows


def report_runs(
    runs_dir: Path | str = _RUNS, output: Path | str = Path("report.html")
) -> Path:
    """Put everything in a runs folder on one page of HTML.

    Args:
        runs_dir: Where the runs are kept.
        output: File to write.

    Returns:
        The file.
    """
    write_report(find_sources([], Path(runs_dir)), Path(output))
    return Path(output)


def _recipe(recipe: Recipe | str) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return recipe_at(recipe) if is_reference(recipe) else get_recipe(recipe)


def _folder(runs_dir: Path | str) -> Path:
    folder = Path(runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _device(device: str | None) -> torch.device:
    has_cuda = torch.cuda.is_available()
    return torch.device(device or ("cuda" if has_cuda else "cpu"))
