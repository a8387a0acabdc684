"""The pictures of a sweep."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from saiopt.analysis.heat_map import Panel, plot_heat_maps
from saiopt.analysis.matched_decay import plot_matched_decay
from saiopt.analysis.sweep_plot import plot_sweep
from saiopt.lab.sweep.board import Cell
from saiopt.lab.sweep.plan import Sweep
from saiopt.lab.sweep.published import published_decay, published_grid

Tried: TypeAlias = Sequence[tuple[Sweep, Sequence[Cell]]]


def draw(tried: Tried, folder: Path, published: str | None) -> None:
    """Draw heat maps and the matched view, or curves where only lr was varied.

    Above a published grid, a cell stands at the decay that the grid would name.

    Args:
        tried: Complete cells of each sweep.
        folder: Where the files are written.
        published: Name of a published grid to draw below ours.
    """
    if not any(cells for _, cells in tried):
        return
    sweep = tried[0][0]
    recipe, count = sweep.recipe, len(sweep.seeds)
    label = recipe.metric.label
    title = f"{recipe.name}, {label}, " + (
        f"mean of {count} seeds" if count > 1 else f"seed {sweep.seeds[0]}"
    )
    if not sweep.weight_decays:
        _draw_curves(tried, _paths(folder, "learning_rates"))
        return
    panels = [_panel(*pair) for pair in tried]
    rows: list[list[Panel | None]] = [list(panels)]
    if published is not None:
        rows = [
            [_as_published(panel) for panel in panels],
            _published_panels(published, tried),
        ]
        title += f"\nbelow: {published_grid(published).metric}; SGD's decay is coupled"
    plot_heat_maps(rows, title, _paths(folder, "heat_maps"))
    if sweep.sampler == "grid":
        plot_matched_decay(
            panels, label, title.partition("\n")[0], _paths(folder, "matched_decay")
        )


def _panel(sweep: Sweep, cells: Sequence[Cell]) -> Panel:
    means = {(cell.lr, cell.weight_decay): cell.mean for cell in cells}
    return Panel(sweep.title, means, sweep.recipe.metric.higher_is_better)


def _as_published(panel: Panel) -> Panel:
    cells = {
        (lr, published_decay(panel.title.partition(" ")[0], decay)): value
        for (lr, decay), value in panel.cells.items()
    }
    return dataclasses.replace(panel, cells=cells)


def _published_panels(name: str, tried: Tried) -> list[Panel | None]:
    values = published_grid(name).values
    return [
        Panel(f"{sweep.optimizer}, published", values[sweep.optimizer], True)
        if sweep.optimizer in values
        else None
        for sweep, _ in tried
    ]


def _draw_curves(tried: Tried, paths: Sequence[Path]) -> None:
    recipe = tried[0][0].recipe
    curves = {
        sweep.title: [(cell.lr, cell.mean) for cell in cells] for sweep, cells in tried
    }
    plot_sweep(
        {recipe.name: curves},
        {recipe.name: recipe.metric.label},
        {recipe.name: recipe.metric.higher_is_better},
        paths,
    )


def _paths(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
