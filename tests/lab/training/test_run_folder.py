import json
import math
from pathlib import Path
from typing import Any

import pytest

from saiopt.lab.training.run_folder import RunFolder, RunFolderError

RUN = {"optimizer": "adamw", "lr": 0.1}


def open_folder(tmp_path: Path, run: dict[str, Any] = RUN) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "run", run, {"torch": "2"})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "lock"}


def test_a_new_folder_holds_its_run_and_environment(tmp_path: Path) -> None:
    path = open_folder(tmp_path).path
    assert json.loads((path / "recipe.json").read_text()) == RUN
    assert json.loads((path / "environment.json").read_text()) == {"torch": "2"}
    assert [p.name for p in path.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"optimizer": "sgd"}', None])
def test_a_folder_with_another_or_no_recipe_is_named_and_left_alone(
    tmp_path: Path, damage: str | None
) -> None:
    path = open_folder(tmp_path).path
    (path / "recipe.json").unlink()
    if damage is not None:
        (path / "recipe.json").write_text(damage)
    before = snapshot(path)
    with pytest.raises(RunFolderError, match=f"{path}"):
        open_folder(tmp_path)
    assert snapshot(path) == before


def test_a_damaged_result_is_named_and_left_alone(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    (folder.path / "result.json").write_text('{"status": "fin')
    with pytest.raises(RunFolderError, match=r"damaged or missing .*result\.json"):
        folder.result()
    assert (folder.path / "result.json").read_text() == '{"status": "fin'


def test_a_finished_run_has_its_result_and_no_checkpoint(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.checkpoint.write_bytes(b"weights")
    assert folder.result() is None
    result = {"status": "finished", "step": 1, "metrics": {}, "total_seconds": 0.1}
    folder.finish(result)
    assert open_folder(tmp_path).result() == result
    assert not folder.checkpoint.exists()


def test_the_log_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append({"step": 0})
    length = folder.log_bytes()
    folder.append({"step": 1})
    folder.truncate_log(length)
    folder.append({"step": 2})
    assert folder.log() == [{"step": 0}, {"step": 2}]


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append({"step": 0})
    before = snapshot(folder.path)
    with pytest.raises(RunFolderError, match="log must hold at least 1000 bytes"):
        folder.truncate_log(1000)
    assert snapshot(folder.path) == before
    (folder.path / "log.jsonl").unlink()
    with pytest.raises(RunFolderError, match="at least 1000 bytes, got 0"):
        folder.truncate_log(1000)
    assert not (folder.path / "log.jsonl").exists()


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    (folder.path / "log.jsonl").write_text('{"step": 0}\n{"st')
    with pytest.raises(RunFolderError, match=r"log\.jsonl"):
        folder.log()


def test_numbers_that_are_not_finite_are_logged_as_null(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append({"loss": math.nan, "rows": [{"gsnr": math.inf, "n": 1}]})
    assert folder.log() == [{"loss": None, "rows": [{"gsnr": None, "n": 1}]}]


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    other = open_folder(tmp_path).locked()
    with folder.locked(), pytest.raises(RunFolderError, match="another process"):
        other.__enter__()
    with open_folder(tmp_path).locked():
        pass
