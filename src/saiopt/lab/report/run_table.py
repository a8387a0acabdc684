"""All finished runs, one row each."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from saiopt.lab.report.sources import Source, main_file, read_source

_ORIGIN = ("hardware", "device", "threads", "torch", "saiopt", "commit", "code")


@dataclasses.dataclass(frozen=True)
class Runs:
    """What there is.

    Args:
        rows: By column; the columns of all rows are the same.
        left_out: A sentence on each folder that is damaged.
    """

    rows: list[dict[str, Any]]
    left_out: list[str]


def find_runs(folders: Sequence[Path]) -> Runs:
    """Read all runs that have ended.

    Args:
        folders: Runs folders.

    Returns:
        The runs in the order of their names.
    """
    rows, left_out = [], []
    for path in sorted(path for folder in folders for path in _run_folders(folder)):
        try:
            rows.append(_row(read_source(path, "result.json")))
        except ValueError as error:
            left_out.append(str(error))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # A metric that some runs lack does not push the folder away from the end.
    columns.sort(key=lambda name: name == "folder")
    return Runs([{name: row.get(name) for name in columns} for row in rows], left_out)


def write_csv(rows: Sequence[dict[str, Any]], file: TextIO) -> None:
    """Write rows with a heading.

    Args:
        rows: From :func:`find_runs`.
        file: Open for text, its line ends left alone.
    """
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _run_folders(folder: Path) -> Iterator[Path]:
    if main_file(folder) is not None:
        yield folder
    elif folder.is_dir():
        yield from (p for p in folder.iterdir() if (p / "result.json").exists())


def _row(run: Source) -> dict[str, Any]:
    described, result = run.read("recipe.json") or {}, run.content
    recipe, origin = described.get("recipe", {}), run.read("environment.json") or {}
    times = result.get("step_seconds") or {}
    return {
        "recipe": recipe.get("name"),
        "optimizer": described.get("optimizer"),
        "seed": described.get("seed"),
        "lr": described.get("lr"),
        "weight_decay": described.get("weight_decay"),
        "settings": json.dumps(described.get("settings", {})),
        "steps": recipe.get("steps"),
        "batch_size": recipe.get("batch_size"),
        "status": result["status"],
        **result["metrics"],
        "num_parameters": result.get("num_parameters"),
        "state_bytes": result.get("state_bytes"),
        "step_seconds": times.get("median"),
        "total_seconds": result["total_seconds"],
        "finished": run.finished,
        **{name: origin.get(name) for name in _ORIGIN},
        "folder": str(run.folder),
    }
