"""What the report says about runs that belong to no comparison."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saiopt.analysis.curves import Curve, plot_curves
from saiopt.lab.progress import duration
from saiopt.lab.report.markup import picture, table
from saiopt.lab.report.sources import Source


def runs_section(recipe: str, runs: Sequence[Source], prefix: str) -> tuple[str, str]:
    """Report single runs of one recipe.

    Args:
        recipe: Its name.
        runs: Folders of finished runs.
        prefix: For the ids of the picture.

    Returns:
        Heading and HTML.
    """
    metrics = _metric_names(runs)
    html = _curves(recipe, runs, metrics[0], prefix) if metrics else ""
    columns = ("optimizer", "seed", "lr", "decay", "status", *metrics, "time")
    html += table(columns, [_row(run, metrics) for run in runs])
    return f"{recipe}: single runs", html


def recipe_name(run: Source) -> str:
    """Return the name of a run's recipe."""
    return _described(run)["recipe"]["name"]


def _described(run: Source) -> Mapping[str, Any]:
    return run.read("recipe.json") or {"recipe": {"name": run.folder.name}}


def _metric_names(runs: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.content["metrics"]))


def _row(run: Source, metrics: Sequence[str]) -> Sequence[str]:
    described, result = _described(run), run.content
    values = [result["metrics"].get(name) for name in metrics]
    return (
        described.get("optimizer", ""),
        str(described.get("seed", "")),
        f"{described.get('lr', 0):.3g}",
        f"{described.get('weight_decay', 0):.3g}",
        result["status"],
        *("" if value is None else f"{value:.4f}" for value in values),
        duration(result["total_seconds"]),
    )


def _curves(recipe: str, runs: Sequence[Source], metric: str, prefix: str) -> str:
    curves: dict[str, list[Curve]] = {}
    for run in runs:
        described = _described(run)
        name = f"{described.get('optimizer', '')} lr {described.get('lr', 0):.3g}"
        curves.setdefault(name, []).append(_curve(run, metric))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.svg"
        plot_curves(curves, recipe, f"validation {metric}", [path])
        return picture(path, f"validation {metric} by step", prefix)


def _curve(run: Source, metric: str) -> Curve:
    path = run.folder / "log.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    values = [(e["step"], e["metrics"].get(metric)) for e in entries if "metrics" in e]
    return [(step, value) for step, value in values if value is not None]
