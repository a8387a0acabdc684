"""What a comparison prints."""

from rich.table import Table

from saiopt.lab.compare import Comparison, Row
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
            metric_text(row),
            f"{row.state_bytes_per_parameter:.2f}",
            milliseconds(row.step_seconds),
            duration(row.total_seconds),
            style="bold" if is_best and len(means) > 1 else None,
        )
    return table


def metric_text(row: Row) -> str:
    """Write mean ± 95 % interval (n), and what diverged.

    Args:
        row: One optimizer.

    Returns:
        Such as ``2.1034 ± 0.0121 (n=3)``.
    """
    parts = []
    if row.metric is not None:
        interval = row.metric.half_width
        spread = "" if interval is None else f" ± {interval:.4f}"
        parts.append(f"{row.metric.mean:.4f}{spread} (n={row.metric.count})")
    if row.diverged:
        seeds = ", ".join(map(str, row.diverged))
        parts.append(f"diverged (seed {seeds})")
    return ", ".join(parts)
