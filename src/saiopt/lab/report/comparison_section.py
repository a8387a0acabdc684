"""What the report says about a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from saiopt.lab.differences import MEANING, Differences, differences
from saiopt.lab.intervals import Estimate, result_text
from saiopt.lab.progress import duration, milliseconds
from saiopt.lab.report.markup import details, note, picture, table
from saiopt.lab.report.sources import Source

_JUDGED = (
    "Better, worse or open: Holm's procedure at 5 % for all differences together; in "
    "bold what is better than all others."
)


def comparison_section(source: Source, prefix: str) -> str:
    """Report a comparison.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        HTML.
    """
    content = source.content
    metric, rows = content["metric"], content["rows"]
    found = _differences(content)
    winner = (
        [row["optimizer"] for row in rows].index(found.winner) if found.winner else None
    )
    html = picture(source.folder / "curves.svg", f"{metric['label']} by step", prefix)
    # The result beside the name, where a narrow screen shows it.
    columns = ("optimizer", metric["label"], "lr", "decay")
    html += table(
        (*columns, "state B/param", "step ms", "time"),
        [_row(row) for row in rows],
        winner,
    )
    if found.found:
        heading = (f"against {found.best}, the best mean", "difference, seed by seed")
        html += table(heading, found.lines())
    more = picture(source.folder / "seconds.svg", "by seconds", f"{prefix}-seconds")
    more += picture(source.folder / "loss.svg", "training loss", f"{prefix}-loss")
    if more:
        html += details("By seconds, and the training loss", more)
    html += note(f"{MEANING}. {_JUDGED}")
    html += "".join(note(text, "warn") for text in content.get("cautions", ()))
    return html + note(_facts(source))


def _differences(content: Mapping[str, Any]) -> Differences:
    metric = content["metric"]
    values: dict[str, dict[int, float | None]] = {}
    for run in content["runs"]:
        value = run["metrics"].get(metric["name"])
        values.setdefault(run["optimizer"], {})[run["seed"]] = value
    higher = metric["higher_is_better"]
    return differences(content["recipe"], values, higher_is_better=higher)


def _facts(source: Source) -> str:
    """Say what was compared, when, and where it lies."""
    fields, runs = source.fields, source.content["runs"]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run["seed"] for run in runs))
    names = ("steps", "batch_size", "schedule", "warmup_fraction", "clip_norm")
    told = [f"{n.replace('_', ' ')} {fields[n]}" for n in names if n in fields]
    task = [f"{n} {value}" for n, value in fields.items() if n.startswith("task.")]
    finished = [f"finished {source.finished}"] if source.finished else []
    return ", ".join([*told, *task, f"seeds {seeds}", *finished, source.folder.name])


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
