"""Finished work as the rows of a file, to which several processes add."""

import json
import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from saiopt.lab.atomic import alone, write_atomically, write_json
from saiopt.lab.identity import identity_hash
from saiopt.lab.training.run_folder import RunFolderError

Row: TypeAlias = dict[str, Any]


class Ledger:
    """One JSON line for each key, which is there whole or not at all.

    A row is on the disk before the next one is made, and is never replaced: what was
    stopped goes on behind it, and what is made again can be compared with it.

    Args:
        path: The file; its folder is created.
        lock: File of the lock that its processes share.
        key: Tells rows apart, from fields that are known before they are made.

    Raises:
        RunFolderError: If a line is damaged.
    """

    def __init__(self, path: Path, lock: Path, key: Callable[[Row], Hashable]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock, self._key = lock, key
        self._seen = b""
        self._held: dict[Hashable, Row] = {}
        self.rows()

    def __contains__(self, row: Row) -> bool:
        """Tell whether there was a row of this key when the file was last read."""
        return self._key(row) in self._held

    def __getitem__(self, row: Row) -> Row:
        return self._held[self._key(row)]

    def rows(self) -> list[Row]:
        """Read what is there by now.

        Returns:
            The rows, in the order of the file.

        Raises:
            RunFolderError: If a line is damaged.
        """
        if self._read():
            # A line that another process is writing has no end yet.
            with alone(self._lock):
                self._mend()
        return list(self._held.values())

    def add(self, rows: Iterable[Row], origin: Row | None = None) -> list[Row | None]:
        """Keep the rows whose keys have none, and bring them to the disk.

        Args:
            rows: JSON types.
            origin: Where they were made, which ``environment.json`` beside the file
                keeps by its hash.

        Returns:
            The row that each key has had, maybe by another process; None if it had
            none.
        """
        wanted = list(rows)
        with alone(self._lock):
            self._mend()
            held = [self._held.get(self._key(row)) for row in wanted]
            new = [row for row in wanted if row not in self]
            if new and origin is not None:
                self._keep_origin(origin)
            self._append(_lines(new))
        return held

    def origin(self, row: Row) -> Row:
        """Return where a row was made.

        Args:
            row: With the hash of its origin as ``environment``.

        Returns:
            As it was given to :meth:`add`; nothing if the file of origins lacks it.
        """
        return self._origins().get(row["environment"], {})

    def sort(self, rows: Iterable[Row]) -> None:
        """Bring the file into an order, if all of its rows have a place in it.

        Args:
            rows: At least the fields of the key.
        """
        order = [self._key(row) for row in rows]
        with alone(self._lock):
            self._mend()
            if self._held.keys() <= set(order):
                text = _lines(self._held[key] for key in order if key in self._held)
                write_atomically(self.path, lambda file: file.write(text))
                self._read()

    def _read(self) -> bytes:
        """Take in the whole lines that are new, and return what comes after them."""
        data = self.path.read_bytes() if self.path.exists() else b""
        end = data.rfind(b"\n") + 1
        if not data[:end].startswith(self._seen):
            self._seen, self._held = b"", {}
        try:
            for row in map(json.loads, data[len(self._seen) : end].splitlines()):
                self._held[self._key(row)] = row
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self.path.name} must hold one finished cell per line, got "
                f"{self.path}; remove or move it to make its cells again"
            ) from error
        self._seen = data[:end]
        return data[end:]

    def _mend(self) -> None:
        """Read, and cut off a line that was being written when its process died."""
        torn = self._read()
        if not torn:
            return
        try:
            json.loads(torn)
        except ValueError:
            os.truncate(self.path, len(self._seen))
        else:
            # An editor has left out the end of the last line.
            self._append(b"\n")

    def _append(self, text: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._read()

    def _keep_origin(self, origin: Row) -> None:
        write_json(self._of_origins, {**self._origins(), identity_hash(origin): origin})

    def _origins(self) -> Row:
        path = self._of_origins
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def _of_origins(self) -> Path:
        return self.path.with_name("environment.json")


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
