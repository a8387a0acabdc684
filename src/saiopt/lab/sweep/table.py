"""What a sweep says, on a terminal and in the report."""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from saiopt.lab.comparison.differences import differences
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.durations import duration
from saiopt.lab.sweep.board import Cell
from saiopt.lab.sweep.plan import Sweep
from saiopt.lab.table import Column, TextTable, text_columns


def sweep_table(content: Mapping[str, Any], *, on_page: bool = False) -> TextTable:
    """Lay out the best cell of each optimizer.

    Args:
        content: Of ``sweep.json``.
        on_page: Whether there is room for the metric's whole name.

    Returns:
        A table that fits 80 columns, with which results not to trust yet.
    """
    tried, label = content["optimizers"], content["metric"]["label"]
    heading = label if on_page else label.replace("validation ", "val. ")
    return TextTable(
        [
            Column("optimizer", itemgetter("optimizer")),
            Column("best lr", lambda tried: _of_best(tried, "lr"), is_number=True),
            Column("decay", lambda t: _of_best(t, "weight_decay"), is_number=True),
            Column(heading, _result, is_number=True),
            Column("diverged", _diverged, is_number=True),
            Column("time", _time, is_number=True),
        ],
        tried,
        _winner(content),
        warnings=[text for each in tried for text in _warnings(each)],
    )


def cell_table(content: Mapping[str, Any]) -> TextTable:
    """Lay out all cells.

    Args:
        content: Of ``sweep.json``.

    Returns:
        A table.
    """
    numbers = ("lr", "decay", content["metric"]["label"], "time")
    rows = [
        (
            optimizer["optimizer"],
            f"{cell['lr']:.3g}",
            f"{cell['weight_decay']:.3g}",
            "diverged" if cell["mean"] is None else f"{cell['mean']:.4f}",
            duration(cell["total_seconds"]),
        )
        for optimizer in content["optimizers"]
        for cell in optimizer["cells"]
    ]
    return TextTable(text_columns("optimizer", *numbers, numbers=numbers), rows)


def cell_line(sweep: Sweep, cell: Cell, done: int, total: int) -> str:
    """Write one finished cell.

    Args:
        sweep: Whose cell it is.
        cell: Finished.
        done: Number of finished cells.
        total: Number of all cells.

    Returns:
        Such as ``sgdsai lr 0.01 decay 0.1: accuracy 0.9533 (3/36)``.
    """
    metric = sweep.recipe.metric.name
    result = "diverged" if cell.mean is None else f"{metric} {cell.mean:.4f}"
    where = f"{sweep.title} lr {cell.lr:.3g} decay {cell.weight_decay:.3g}"
    return f"{where}: {result} ({done}/{total}, {duration(cell.total_seconds)})"


def _of_best(tried: Mapping[str, Any], name: str) -> str:
    return "" if tried["best"] is None else f"{tried['best'][name]:.3g}"


def _result(tried: Mapping[str, Any]) -> str:
    best = tried["best"]
    return "none" if best is None else str(estimate(list(best["values"].values())))


def _diverged(tried: Mapping[str, Any]) -> str:
    cells: Sequence[Mapping[str, Any]] = tried["cells"]
    return f"{sum(cell['mean'] is None for cell in cells)}/{len(cells)}"


def _time(tried: Mapping[str, Any]) -> str:
    return duration(sum(cell["total_seconds"] for cell in tried["cells"]))


def _winner(content: Mapping[str, Any]) -> int | None:
    """Return the row whose best cell can be told from the best ones of all others."""
    values = {
        tried["optimizer"]: (tried["best"] or {}).get("values", {})
        for tried in content["optimizers"]
    }
    higher = content["metric"]["higher_is_better"]
    found = differences(content["recipe"], values, higher_is_better=higher)
    return None if found.winner is None else list(values).index(found.winner)


def _warnings(tried: Mapping[str, Any]) -> Iterator[str]:
    """Say why not to trust what was found for an optimizer yet."""
    name, missing = tried["optimizer"], tried["missing"]
    if tried["borders"]:
        where = " and the ".join(tried["borders"])
        yield (
            f"{name}: the best cell lies on the border, at the {where} tried; widen "
            "the range before using it"
        )
    if missing:
        yield (
            f"{name}: {missing} of {missing + len(tried['cells'])} cells are not "
            "finished, another process may have them; the same command goes on"
        )
