"""What a comparison prints."""

from rich.table import Table

from saiopt.lab.compare import Comparison
from saiopt.lab.intervals import result_text
from saiopt.lab.progress import duration, milliseconds


def comparison_table(comparison: Comparison) -> Table:
    """Lay out one row per optimizer, the best mean without divergence in bold.

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
    means = [
        row.metric.mean for row in comparison.rows if row.metric and not row.diverged
    ]
    best = (max if metric.higher_is_better else min)(means, default=None)
    for row in comparison.rows:
        is_best = row.metric is not None and row.metric.mean == best
        table.add_row(
            row.optimizer,
            f"{row.lr:g}",
            result_text(row.metric, row.diverged),
            f"{row.state_bytes_per_parameter:.2f}",
            milliseconds(row.step_seconds),
            duration(row.total_seconds),
            style="bold" if is_best and len(means) > 1 else None,
        )
    return table
