"""What ``saiopt runs`` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from saiopt.lab.progress import duration
from saiopt.lab.recipes import RECIPES


def run_list(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out one row per run.

    Args:
        rows: From :func:`saiopt.lab.run_table.find_runs`.

    Returns:
        A table that fits 100 columns.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("recipe", "optimizer"):
        table.add_column(column, no_wrap=True)
    for column in ("lr", "decay", "seed", "steps", "result", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("finished", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["recipe"]),
            str(row["optimizer"]),
            _number(row["lr"]),
            _number(row["weight_decay"]),
            str(row["seed"]),
            str(row["steps"]),
            _result(row),
            duration(row["total_seconds"]),
            str(row["finished"]),
        )
    return table


def _result(row: Mapping[str, Any]) -> str:
    """Write the metric of a shipped recipe, of another one any but the loss."""
    if row["status"] != "finished":
        return row["status"]
    names = list(row)
    metrics = names[names.index("status") + 1 : names.index("num_parameters")]
    known = [name for name in metrics if row[name] is not None]
    build = RECIPES.get(row["recipe"])
    usual = [build().metric.name] if build is not None else []
    first = next((n for n in (*usual, *known) if n in known and n != "loss"), "loss")
    return f"{first} {row[first]:.4f}" if row.get(first) is not None else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
