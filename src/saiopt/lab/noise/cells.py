"""The cells of a noise study: around which they are planned, where they are kept."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saiopt.lab.atomic import write_json
from saiopt.lab.identity import identity_hash
from saiopt.lab.studies.ledger import Ledger


def open_folder(
    runs_dir: Path,
    name: str,
    settings: Mapping[str, Any],
    origin: Mapping[str, Any],
    cell: type,
) -> Ledger:
    """Open the finished cells of all studies that share their settings.

    The folder is named after a hash of the settings, so that another setting makes
    another folder, while more cells of the same settings join the ones that are there.

    Args:
        runs_dir: Where such folders live.
        name: Start of the folder's name.
        settings: What all cells share, as JSON types.
        origin: Versions, hardware and commit, as JSON types.
        cell: Dataclass of which each row has the fields.

    Returns:
        The rows of ``cells.jsonl`` in the folder.
    """
    folder = runs_dir / f"{name}-{identity_hash(settings)}"
    names = [field.name for field in dataclasses.fields(cell)]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "settings.json", dict(settings))
    path = folder / "cells.jsonl"
    if not path.exists():
        write_json(folder / "environment.json", dict(origin))
    return Ledger(path, folder / "lock", lambda row: tuple(row[n] for n in names))


def middle(values: Sequence[float]) -> Any:  # noqa: ANN401 - int of ints
    """Return the median, the lower one of two.

    Args:
        values: At least one.

    Returns:
        One of the values.
    """
    return statistics.median_low(sorted(set(values)))
