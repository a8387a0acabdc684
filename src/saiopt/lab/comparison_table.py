"""What a comparison prints."""

from rich.console import Console
from rich.table import Table

from saiopt.lab.compare import Comparison
from saiopt.lab.differences import MEANING
from saiopt.lab.intervals import result_text
from saiopt.lab.progress import duration, milliseconds


def comparison_table(comparison: Comparison) -> Table:
    """Lay out one row per optimizer, one that beats all others in bold.

    Args:
        comparison: To be shown.

    Returns:
        A table that fits 80 columns.
    """
    metric = comparison.recipe.metric
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("\noptimizer", "\nlr"):
        table.add_column(column, no_wrap=True)
    table.add_column(f"\nvalidation {metric.name}", justify="right")
    for column in ("state\nB/param", "step\nms", "\ntime"):
        table.add_column(column, justify="right")
    winner = comparison.differences.winner
    for row in comparison.rows:
        table.add_row(
            row.optimizer,
            f"{row.lr:g}",
            result_text(row.metric, row.diverged),
            f"{row.state_bytes_per_parameter:.2f}",
            milliseconds(row.step_seconds),
            duration(row.total_seconds),
            style="bold" if row.optimizer == winner else None,
        )
    return table


def difference_table(comparison: Comparison) -> Table:
    """Lay out what the others gain over the optimizer of the best mean.

    Args:
        comparison: With at least two optimizers, of which one finished all runs.

    Returns:
        A table that fits 80 columns.
    """
    found = comparison.differences
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"against {found.best}, the best mean", no_wrap=True)
    table.add_column("difference, seed by seed", no_wrap=True)
    for name, text in found.lines():
        table.add_row(name, text)
    return table


def meaning(comparison: Comparison) -> str:
    """Say what the signs in the tables mean.

    Args:
        comparison: That is shown.

    Returns:
        Sentences, nothing where there is one seed.
    """
    if len({outcome.run.seed for outcome in comparison.outcomes}) == 1:
        return ""
    judged = (
        "; better, worse or open: Holm's procedure at 5 % for all differences together"
    )
    return f"{MEANING}{judged if len(comparison.rows) > 1 else ''}."


def as_text(comparison: Comparison) -> str:
    """Write a comparison's tables and what is to be said of them.

    Args:
        comparison: To be shown.

    Returns:
        Lines.
    """
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(comparison_table(comparison))
        if comparison.differences.found:
            console.print()
            console.print(difference_table(comparison))
        for text in filter(None, (meaning(comparison), *comparison.cautions)):
            console.print(f"\n{text}")
    return capture.get()
