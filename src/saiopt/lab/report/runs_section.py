"""What the report says about runs that belong to no comparison."""

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saiopt.analysis.curves import Curve, plot_curves
from saiopt.lab.durations import duration
from saiopt.lab.report import titles
from saiopt.lab.report.section import Picture, Section, pictures
from saiopt.lab.report.sources import Source
from saiopt.lab.table import TextTable, text_columns


def runs_section(recipe: str, runs: Sequence[Source]) -> tuple[Section, list[str]]:
    """Report single runs of one recipe.

    Args:
        recipe: Its name.
        runs: Folders of finished runs.

    Returns:
        The section, and a sentence on each log that is damaged or missing.
    """
    metrics = _metric_names(runs)
    varied = titles.varied([run.fields for run in runs])
    numbers = ("seed", "lr", "decay", *varied, "status", *metrics, "time")
    table = TextTable(
        text_columns("optimizer", *numbers, numbers=numbers),
        [_row(run, metrics, varied) for run in runs],
    )
    curves = _curves(recipe, runs, metrics[0], varied) if metrics else []
    faults = [_log_fault(run) for run in runs]
    section = Section(f"{recipe}: single runs", curves, [table])
    return section, [fault for fault in faults if fault]


def require_run(run: Source) -> None:
    """See that a run's files hold what a section needs.

    Args:
        run: Folder of a finished run.

    Raises:
        Exception: Of any kind that looking into other content raises.
    """
    _row(run, _metric_names([run]), [])
    recipe_name(run)


def recipe_name(run: Source) -> str:
    """Return the name of a run's recipe."""
    return _described(run)["recipe"]["name"]


def _described(run: Source) -> Mapping[str, Any]:
    return run.read("recipe.json") or {"recipe": {"name": run.folder.name}}


def _metric_names(runs: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.content["metrics"]))


def _values(run: Source, varied: Sequence[str]) -> Sequence[str]:
    fields = run.fields
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
    recipe: str, runs: Sequence[Source], metric: str, varied: Sequence[str]
) -> list[Picture]:
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
        return pictures((path, f"validation {metric} by step"))


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
    entries = [entry for entry in _log(run) if entry is not None]
    values = [(e["step"], e["metrics"].get(metric)) for e in entries if "metrics" in e]
    return [(step, value) for step, value in values if value is not None]


def _log(run: Source) -> list[dict[str, Any] | None]:
    """Return the lines of a run's log, None of one that is damaged."""
    path = run.folder / "log.jsonl"
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return [_entry(line) for line in lines]


def _entry(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            return entry
    return None


def _log_fault(run: Source) -> str | None:
    path = run.folder / "log.jsonl"
    if not path.exists():
        return f"{path} is missing: its run has no curve"
    damaged = _log(run).count(None)
    if damaged == 0:
        return None
    lines = "a damaged line" if damaged == 1 else f"{damaged} damaged lines"
    return f"{path} has {lines}, without which its curve is drawn"
