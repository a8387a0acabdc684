"""What ``saiopt runs`` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from saiopt.lab.durations import duration
from saiopt.lab.recipes import RECIPES
from saiopt.lab.table import Column, TextTable


def run_list(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """Lay out one row per run.

    Args:
        rows: From :func:`saiopt.lab.report.run_table.find_runs`.

    Returns:
        A table that fits 100 columns.
    """
    return TextTable(
        [
            Column("recipe", lambda row: str(row["recipe"])),
            Column("optimizer", lambda row: str(row["optimizer"])),
            Column("lr", lambda row: _number(row["lr"]), is_number=True),
            Column("decay", lambda row: _number(row["weight_decay"]), is_number=True),
            Column("seed", lambda row: str(row["seed"]), is_number=True),
            Column("steps", lambda row: str(row["steps"]), is_number=True),
            Column("result", _result, is_number=True),
            Column("time", lambda row: duration(row["total_seconds"]), is_number=True),
            Column("finished", lambda row: str(row["finished"])),
        ],
        rows,
    )


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
