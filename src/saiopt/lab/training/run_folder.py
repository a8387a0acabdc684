"""The files of one run, and the rule that none is overwritten unread."""

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saiopt.lab.atomic import sync_folder, write_json

_OF_A_RESULT = frozenset({"status", "step", "metrics", "total_seconds"})


class RunFolderError(RuntimeError):
    """A run folder is not what it should be; it was left alone."""


class RunFolder:
    """``recipe.json``, ``environment.json``, ``log.jsonl``, ``result.json`` of a run.

    ``result.json`` is written last: a folder with one holds a finished run. The log has
    one JSON object per line: what a step did, ``step`` counted from 0, or the
    ``metrics`` of an evaluation after ``step`` steps.

    Args:
        path: The folder.
        run: What the run is, as JSON types.
        environment: Where it is trained, as JSON types.

    Raises:
        RunFolderError: If the folder is there and holds something else.
    """

    def __init__(
        self, path: Path, run: dict[str, Any], environment: dict[str, Any]
    ) -> None:
        self._locate(path)
        if not path.exists():
            _create(path, run, environment)
        elif self._read(path / "recipe.json") != run:
            raise RunFolderError(
                f"run folder must hold the run that its name says, got {path} with "
                "another recipe.json; remove or move it to train the run again"
            )

    def _locate(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights.pt"
        self._log = path / "log.jsonl"
        self._result = path / "result.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            RunFolderError: If another process trains this run.
        """
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"run folder must be free, got {self.path}, which another process "
                    "is training"
                ) from None
            yield

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, None of an unfinished one.

        Raises:
            RunFolderError: If the file is damaged.
        """
        if not self._result.exists():
            return None
        result = self._read(self._result)
        if not result.keys() >= _OF_A_RESULT:
            raise _damaged(self._result)
        return result

    def environment(self) -> dict[str, Any]:
        """Return where the run was begun.

        Raises:
            RunFolderError: If the file is damaged.
        """
        return self._read(self.path / "environment.json")

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result and drop what only a resume needs.

        Args:
            result: JSON types.
        """
        self._sync_log()
        write_json(self._result, result)
        self.checkpoint.unlink(missing_ok=True)

    def append(self, line: dict[str, Any]) -> None:
        """Append one line to the log; numbers that are not finite become null.

        Args:
            line: JSON types.
        """
        text = json.dumps(_without_infinities(line), allow_nan=False)
        with self._log.open("a") as file:
            file.write(text + "\n")

    def log_bytes(self) -> int:
        """Bring the log to the disk and return its length."""
        return self._sync_log()

    def truncate_log(self, length: int) -> None:
        """Forget what was logged after a checkpoint.

        Args:
            length: The log's length at the checkpoint.

        Raises:
            RunFolderError: If the log is shorter than that.
        """
        held = self._log.stat().st_size if self._log.exists() else 0
        if held < length:
            raise RunFolderError(
                f"log must hold at least {length} bytes, got {held} in {self._log}; "
                "remove or move its run folder to train the run again"
            )
        with self._log.open("ab") as file:
            file.truncate(length)

    def log(self) -> list[dict[str, Any]]:
        """Return all lines of the log.

        Raises:
            RunFolderError: If a line is damaged.
        """
        try:
            return [json.loads(line) for line in self._log.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise _damaged(self._log) from error

    def _sync_log(self) -> int:
        with self._log.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        if not isinstance(value, dict):
            raise _damaged(path)
        return value


class FollowedFolder(RunFolder):
    """A run folder that another process of the same run writes.

    Args:
        path: The folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self._locate(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Leave the lock to the process that writes."""
        yield

    def append(self, line: dict[str, Any]) -> None:
        """Leave the line to the process that writes.

        Args:
            line: JSON types.
        """

    def log_bytes(self) -> int:
        """Return 0: only the process that writes needs the length."""
        return 0

    def truncate_log(self, length: int) -> None:
        """Leave the log to the process that writes.

        Args:
            length: The log's length at the checkpoint.
        """


def _damaged(path: Path) -> RunFolderError:
    return RunFolderError(
        f"{path.name} must be readable JSON, got a damaged or missing {path}; it is "
        "left as it is: remove or move its run folder to train the run again"
    )


def _create(path: Path, run: dict[str, Any], environment: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
        new = Path(scratch) / path.name
        new.mkdir()
        write_json(new / "recipe.json", run)
        write_json(new / "environment.json", environment)
        try:
            new.rename(path)
        except OSError:
            # Another process may have created the same run in the meantime.
            if not path.exists():
                raise
    sync_folder(path.parent)


def _without_infinities(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
