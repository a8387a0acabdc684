"""What the report says about a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from saiopt.lab.intervals import Estimate, result_text
from saiopt.lab.progress import duration, milliseconds
from saiopt.lab.report.markup import best_index, note, picture, table
from saiopt.lab.report.sources import Source

_INTERVALS = "mean ± 95 % Student interval over n seeds"


def comparison_section(source: Source, prefix: str) -> tuple[str, str]:
    """Report a comparison.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        Heading and HTML.
    """
    content = source.content
    metric, rows = content["metric"], content["rows"]
    means = [
        None if row["metric"] is None or row["diverged"] else row["metric"]["mean"]
        for row in rows
    ]
    html = picture(source.folder / "curves.svg", f"{metric['label']} by step", prefix)
    # The result beside the name, where a narrow screen shows it.
    columns = ("optimizer", metric["label"], "lr", "decay")
    html += table(
        (*columns, "state B/param", "step ms", "time"),
        [_row(row) for row in rows],
        best_index(means, metric["higher_is_better"]),
    )
    html += note(f"{_INTERVALS}; {source.folder.name}")
    return f"{content['recipe']}: comparison", html


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    metric = row["metric"]
    return (
        row["optimizer"],
        result_text(metric and Estimate(**metric), row["diverged"]),
        f"{row['lr']:g}",
        f"{row['weight_decay']:.3g}",
        f"{row['state_bytes_per_parameter']:.2f}",
        milliseconds(row["step_seconds"]),
        duration(row["total_seconds"]),
    )
