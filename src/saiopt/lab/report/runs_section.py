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
    varied = _varied(runs)
    html = _curves(recipe, runs, metrics[0], varied, prefix) if metrics else ""
    columns = ("optimizer", "seed", "lr", "decay", *varied, "status", *metrics, "time")
    html += table(columns, [_row(run, metrics, varied) for run in runs])
    return f"{recipe}: single runs", html


def recipe_name(run: Source) -> str:
    """Return the name of a run's recipe."""
    return _described(run)["recipe"]["name"]


def _described(run: Source) -> Mapping[str, Any]:
    return run.read("recipe.json") or {"recipe": {"name": run.folder.name}}


def _metric_names(runs: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.content["metrics"]))


def _varied(runs: Sequence[Source]) -> Sequence[str]:
    """Return the fields of recipe and code that the runs do not have in common."""
    flat = [_fields(run) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return [name for name in names if len({str(f.get(name)) for f in flat}) > 1]


def _fields(run: Source) -> Mapping[str, Any]:
    recipe = dict(_described(run)["recipe"])
    task = {f"task.{name}": value for name, value in recipe.pop("task", {}).items()}
    # The decay per step is what the column of the decay says.
    recipe.pop("decay_per_step", None)
    code = (run.read("environment.json") or {}).get("code", "")
    return recipe | task | {"code": code}


def _values(run: Source, varied: Sequence[str]) -> Sequence[str]:
    fields = _fields(run)
    return [str(fields.get(name, "")) for name in varied]


def _row(run: Source, metrics: Sequence[str], varied: Sequence[str]) -> Sequence[str]:
    described, result = _described(run), run.content
    values = [result["metrics"].get(name) for name in metrics]
    return (
        described.get("optimizer", ""),
        str(described.get("seed", "")),
        _number(run, "lr"),
        _number(run, "weight_decay"),
        *_values(run, varied),
        result["status"],
        *("" if value is None else f"{value:.4f}" for value in values),
        duration(result["total_seconds"]),
    )


def _curves(
    recipe: str, runs: Sequence[Source], metric: str, varied: Sequence[str], prefix: str
) -> str:
    # One line per setting: its runs differ by their seeds alone.
    decays: dict[str, set[str]] = {}
    for run in runs:
        decays.setdefault(_line_name(run, varied), set()).add(
            _number(run, "weight_decay")
        )
    curves: dict[str, list[Curve]] = {}
    for run in runs:
        name = _line_name(run, varied)
        if len(decays[name]) > 1:
            name += f" decay {_number(run, 'weight_decay')}"
        curves.setdefault(name, []).append(_curve(run, metric))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.svg"
        plot_curves(curves, recipe, f"validation {metric}", [path])
        return picture(path, f"validation {metric} by step", prefix)


def _line_name(run: Source, varied: Sequence[str]) -> str:
    settings = zip(varied, _values(run, varied), strict=True)
    return " ".join(
        [
            f"{_described(run).get('optimizer', '')} lr {_number(run, 'lr')}",
            *(f"{name}={value}" for name, value in settings),
        ]
    )


def _number(run: Source, name: str) -> str:
    return f"{_described(run).get(name, 0):.3g}"


def _curve(run: Source, metric: str) -> Curve:
    path = run.folder / "log.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    values = [(e["step"], e["metrics"].get(metric)) for e in entries if "metrics" in e]
    return [(step, value) for step, value in values if value is not None]
