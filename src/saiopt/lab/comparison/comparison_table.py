"""What a comparison says, on a terminal and in the report."""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from rich.console import Console

from saiopt.lab.comparison.compare import Comparison, as_json
from saiopt.lab.comparison.differences import MEANING, Differences, differences
from saiopt.lab.comparison.intervals import Estimate, result_text
from saiopt.lab.durations import duration, milliseconds
from saiopt.lab.table import Column, TextTable, text_columns

_JUDGED = (
    "; better, worse or open: Holm's procedure at 5 % for all differences together"
)


def comparison_tables(
    content: Mapping[str, Any], *, on_page: bool = False
) -> list[TextTable]:
    """Lay out one row per optimizer, and what the others gain over the best mean.

    Args:
        content: Of ``comparison.json``.
        on_page: Whether there is room for everything, and the result comes first,
            where a narrow page shows it.

    Returns:
        Tables that fit 80 columns, with what their signs mean and why not to trust
        them; one, where there is nothing to compare.
    """
    rows, found = content["rows"], _differences(content)
    names = [row["optimizer"] for row in rows]
    summary = TextTable(
        _columns(content["metric"], on_page=on_page),
        rows,
        names.index(found.winner) if found.winner else None,
        _meaning(content),
        content.get("cautions", ()),
    )
    return [summary, _difference_table(found)] if found.found else [summary]


def as_text(comparison: Comparison) -> str:
    """Write a comparison's tables and what is to be said of them.

    Args:
        comparison: To be shown.

    Returns:
        Lines.
    """
    tables = comparison_tables(as_json(comparison))
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        for index, table in enumerate(tables):
            if index:
                console.print()
            console.print(table.for_terminal())
        for text in (*tables[0].notes, *tables[0].warnings):
            console.print(f"\n{text}")
    return capture.get()


def _columns(metric: Mapping[str, Any], *, on_page: bool) -> list[Column]:
    name = Column("optimizer", itemgetter("optimizer"))
    result = Column(
        metric["label"] if on_page else f"validation {metric['name']}",
        lambda row: result_text(
            row["metric"] and Estimate(**row["metric"]), row["diverged"]
        ),
        is_number=True,
    )
    lr = Column("lr", lambda row: f"{row['lr']:g}", is_number=on_page)
    decay = Column("decay", lambda row: f"{row['weight_decay']:.3g}", is_number=True)
    rest = [
        Column(
            "state\nB/param",
            lambda row: f"{row['state_bytes_per_parameter']:.2f}",
            is_number=True,
        ),
        Column("step\nms", lambda row: milliseconds(row["step_seconds"]), True),
        Column("time", lambda row: duration(row["total_seconds"]), is_number=True),
    ]
    first = [name, result, lr, decay] if on_page else [name, lr, result]
    return [*first, *rest]


def _difference_table(found: Differences) -> TextTable:
    headings = (f"against {found.best}, the best mean", "difference, seed by seed")
    return TextTable(text_columns(*headings), found.lines())


def _differences(content: Mapping[str, Any]) -> Differences:
    metric = content["metric"]
    values: dict[str, dict[int, float | None]] = {}
    for run in content["runs"]:
        value = run["metrics"].get(metric["name"])
        values.setdefault(run["optimizer"], {})[run["seed"]] = value
    higher = metric["higher_is_better"]
    return differences(content["recipe"], values, higher_is_better=higher)


def _meaning(content: Mapping[str, Any]) -> list[str]:
    """Say what the signs in the tables mean, nothing where there is one seed."""
    if len({run["seed"] for run in content["runs"]}) == 1:
        return []
    return [f"{MEANING}{_JUDGED if len(content['rows']) > 1 else ''}."]
