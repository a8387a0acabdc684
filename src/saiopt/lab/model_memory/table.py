"""What ``saiopt memory`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from saiopt.lab.model_memory.report import MemoryReport, MemoryRow, published

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}
_COLUMNS = (
    "weights",
    "grads",
    "state",
    "total",
    "release",
    "bytes/\nparam",
    "state\nblocks",
    "paper\nGB",
)
_MEANING = (
    "GiB, MiB, KiB = 2^30, 2^20, 2^10 bytes of tensors, without activations. release: "
    "the total when each parameter steps during the backward pass and its gradient is "
    "freed. bytes/param: of state. state blocks: what the CUDA allocator counts for it."
)
_BY_ROLE = ("orthogonal", "factored")
_RULES = (
    "orthogonal, factored: SGD-SaI by the roles of parameters, with that rule for "
    "hidden matrices and factored scales for all others; with what calibration sums up."
)


def renderables(reports: Sequence[MemoryReport]) -> Iterator[Table | Text]:
    """Lay out all that the command prints, in order.

    Args:
        reports: From :func:`saiopt.lab.model_memory.report.report_memory`.

    Yields:
        Titles, tables and notes for a rich console, which fit 80 columns.
    """
    from rich.text import Text

    for report in reports:
        yield Text(title(report), style="bold")
        yield memory_table(report)
        yield Text()
    for note in notes(reports):
        yield Text(note, style="dim")


def memory_table(report: MemoryReport) -> Table:
    """Lay out one model's memory, a row for each optimizer.

    Args:
        report: The model's.

    Returns:
        A table that fits 80 columns; sizes of one rank, in a unit that suits them.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    unit = _unit(report)
    table.add_column(unit, no_wrap=True)
    shows_paper = any(row.published_gb is not None for row in report.rows)
    columns = _COLUMNS if shows_paper else _COLUMNS[:-1]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.rows:
        cells = _cells(row, UNITS[unit])[: len(columns)]
        style = (
            "bold"
            if row.optimizer.startswith(("SGD-SaI", "sgdsai", *_BY_ROLE))
            else None
        )
        table.add_row(row.optimizer, *cells, style=style)
    return table


def title(report: MemoryReport) -> str:
    """Name a report's model.

    Args:
        report: The model's.

    Returns:
        Such as ``gpt2 · GPT2LMHeadModel · 124,439,808 parameters in float32``.
    """
    text = (
        f"{report.model} · {report.kind} · {report.num_params:,} parameters "
        f"in {report.dtype}"
    )
    shards = report.num_shards
    return text if shards == 1 else f"{text} · the largest of {shards} shards"


def notes(reports: Sequence[MemoryReport]) -> list[str]:
    """Explain what the tables cannot say in a heading.

    Args:
        reports: What the tables show.

    Returns:
        Sentences, each one once.
    """
    texts = [_MEANING]
    shown = [row for report in reports for row in report.rows]
    if any(row.published_gb is not None for row in shown):
        texts.append(f"paper GB: {published()['source']}; compare with state blocks.")
    if any(row.optimizer.startswith(_BY_ROLE) for row in shown):
        texts.append(_RULES)
    texts += [
        f"{report.model}: {published()['notes'][report.model]}."
        for report in reports
        if report.model in published()["notes"]
        and any(row.published_gb for row in report.rows)
    ]
    texts += [row.note + "." for row in shown if row.note]
    return list(dict.fromkeys(texts))


def _unit(report: MemoryReport) -> str:
    """Return the unit in which the largest size has a digit before the point.

    Where the paper's figures stand beside ours, it is GiB.
    """
    if any(row.published_gb is not None for row in report.rows):
        return "GiB"
    found = (row.estimate for row in report.rows if row.estimate is not None)
    largest = max((estimate.total_bytes for estimate in found), default=0)
    return next((name for name, size in UNITS.items() if largest >= size), "bytes")


def _cells(row: MemoryRow, unit: int) -> list[str]:
    paper = "" if row.published_gb is None else f"{row.published_gb:.2f}"
    found = row.estimate
    if found is None:
        return ["—"] * (len(_COLUMNS) - 1) + [paper]
    sizes = (
        found.weights.tensor_bytes,
        found.gradients.tensor_bytes,
        found.state.tensor_bytes,
        found.total_bytes,
        found.release_bytes,
    )
    return [
        *(_in_unit(size, unit) for size in sizes),
        f"{found.state_bytes_per_parameter:.2f}",
        _in_unit(found.state.block_bytes, unit),
        paper,
    ]


def _in_unit(size: int, unit: int) -> str:
    """Write a size with two digits behind the point, three below 1."""
    if unit == 1:
        return f"{size:,}"
    value = size / unit
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
