"""What a sweep prints."""

from collections.abc import Sequence

from rich.table import Table

from saiopt.lab.progress import duration
from saiopt.lab.sweep.board import Cell
from saiopt.lab.sweep.findings import Finding, Findings
from saiopt.lab.sweep.plan import Sweep


def sweep_table(findings: Findings) -> Table:
    """Lay out the best cell of each optimizer.

    Args:
        findings: To be shown.

    Returns:
        A table that fits 80 columns.
    """
    metric = findings.findings[0].sweep.recipe.metric
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("optimizer", no_wrap=True)
    for column in ("best lr", "decay", metric.label.replace("validation ", "val. ")):
        table.add_column(column, justify="right")
    for column in ("diverged", "time"):
        table.add_column(column, justify="right")
    for finding in findings.findings:
        table.add_row(finding.sweep.title, *_columns(finding))
    return table


def warnings(findings: Findings) -> list[str]:
    """Say which results should not be trusted yet.

    Args:
        findings: To be judged.

    Returns:
        One sentence per reason.
    """
    sentences = []
    for finding in findings.findings:
        name = finding.sweep.title
        if finding.borders:
            where = " and the ".join(finding.borders)
            sentences.append(
                f"{name}: the best cell lies on the border, at the {where} tried; "
                "widen the range before using it"
            )
        if finding.missing:
            total = len(finding.sweep.cells())
            sentences.append(
                f"{name}: {finding.missing} of {total} cells are not finished, another "
                "process may have them; the same command goes on"
            )
    return sentences


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


def _columns(finding: Finding) -> Sequence[str]:
    diverged = sum(cell.mean is None for cell in finding.cells)
    spent = duration(sum(cell.total_seconds for cell in finding.cells))
    counts = (f"{diverged}/{len(finding.cells)}", spent)
    if finding.best is None or finding.estimate is None:
        return ("", "", "none", *counts)
    return (
        f"{finding.best.lr:.3g}",
        f"{finding.best.weight_decay:.3g}",
        str(finding.estimate),
        *counts,
    )
