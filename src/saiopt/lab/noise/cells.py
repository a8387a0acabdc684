"""A file of finished cells, one JSON line each, to which a study goes on adding."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from saiopt.lab.atomic import alone, write_json
from saiopt.lab.run_folder import RunFolderError

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[Any, ...]


class Cells:
    """Finished cells of all studies that share their settings.

    The folder is named after a hash of the settings, so that another setting makes
    another folder, while more cells of the same settings join the ones that are there.

    Args:
        runs_dir: Where such folders live.
        name: Start of the folder's name.
        settings: What all cells share, as JSON types.
        origin: Versions, hardware and commit, as JSON types.
        key: Names of a row's fields that identify its cell.
    """

    def __init__(
        self,
        runs_dir: Path,
        name: str,
        settings: Mapping[str, Any],
        origin: Mapping[str, Any],
        key: Sequence[str],
    ) -> None:
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.folder = runs_dir / f"{name}-{digest}"
        self.path = self.folder / "cells.jsonl"
        self._lock = self.folder / "lock"
        self._key = tuple(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "settings.json", dict(settings))
        if not self.path.exists():
            write_json(self.folder / "environment.json", dict(origin))

    def finished(self) -> dict[Key, Row]:
        """Return the rows that are there, by key.

        A last line without its end was being written when the process died; it is cut
        off, and its cell is made again.

        Returns:
            The rows in the order in which they were made.

        Raises:
            RunFolderError: If another line is damaged.
        """
        if not self.path.exists():
            return {}
        # A line that another process is writing is not torn.
        with alone(self._lock):
            whole, _, torn = self.path.read_bytes().rpartition(b"\n")
            if torn:
                os.truncate(self.path, len(whole) + 1 if whole else 0)
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            return {self.key_of(row): row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"cells.jsonl must hold one finished cell per line, got {self.path}; "
                "remove or move it to make its cells again"
            ) from error

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and bring them to the disk.

        Args:
            rows: JSON types, numbers finite.
        """
        lines = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
        with alone(self._lock), self.path.open("a") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def key_of(self, row: Mapping[str, Any]) -> Key:
        """Return what identifies a cell.

        Args:
            row: At least the fields of the key.

        Returns:
            The values of those fields.
        """
        return tuple(row[name] for name in self._key)
