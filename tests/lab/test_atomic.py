import errno
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from saiopt.lab.atomic import full_disk, write_atomically, write_json


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def crash(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, crash)
    assert path.read_bytes() == b"old"


def test_a_crash_before_the_replacement_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def crash(self: Path, target: Path) -> None:
        assert self.read_bytes() == b"new", "it must be whole before it is put in place"
        assert self.parent == target.parent, "a rename is atomic in one folder only"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"newer"))
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


WRITING = """
import sys
from pathlib import Path
from saiopt.lab.atomic import write_json
for i in range(300):
    write_json(Path(sys.argv[1]), {"writer": sys.argv[2], "texts": [str(i)] * 500})
"""


def test_processes_that_write_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    writing = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(path), name],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    while any(process.poll() is None for process in writing):
        if path.exists():
            assert len(json.loads(path.read_text())["texts"]) == 500
    assert [process.communicate()[1] for process in writing] == ["", ""]
    assert json.loads(path.read_text())["texts"] == ["299"] * 500
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_what_a_killed_process_has_left_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file.json.tmp").write_text("x" * 1000)
    write_json(tmp_path / "file.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    assert (tmp_path / "file.json").read_text() == "{}\n"


def test_a_file_gets_the_rights_that_files_have(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_json_without_a_standard_form_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"loss": math.inf})
    assert not list(tmp_path.iterdir())


def test_what_did_not_fit_on_the_disk_is_removed(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", full)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_through_the_errors_that_hide_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    hiding = RuntimeError("failed writing file")
    hiding.__context__ = full
    assert full_disk(hiding) is full
    database = ValueError("database or disk is full")
    assert full_disk(database) is database
    assert full_disk(OSError(errno.EACCES, "Permission denied")) is None
