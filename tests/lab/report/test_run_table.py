import csv
import json
from pathlib import Path

import pytest
import torch

from saiopt.cli import main
from saiopt.lab.comparison.compare import plan, prepare
from saiopt.lab.recipe import Recipe
from saiopt.lab.training.outcome import carry_out


@pytest.fixture
def runs_dir(tiny: Recipe, tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for run in plan(tiny, ["adamw", "sgd"], (0,), {"sgd": 1e30}):
        carry_out(run, prepare([run]), folder, torch.device("cpu"), lambda _: None)
    return folder


def test_all_runs_are_one_table(
    runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.csv"
    assert main(["runs", str(runs_dir), "--csv", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["finished", "diverged"]
    assert rows[1]["accuracy"] is None
    with path.open() as file:
        written = list(csv.DictReader(file))
    assert [row["lr"] for row in written] == [str(row["lr"]) for row in rows]
    assert list(written[0]) == list(rows[0])


@pytest.mark.parametrize("width", ["40", "60", "100"])
def test_no_number_of_the_table_is_cut(
    width: str,
    runs_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main(["runs", str(runs_dir)]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert "1e+30" in text
    assert "diverged" in text


def test_a_damaged_run_is_left_out_and_told(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = runs_dir.glob("*sgd*/result.json")
    path.write_text("{}")
    assert main(["runs", str(runs_dir)]) == 0
    assert f"Left out: {path} lacks" in capsys.readouterr().out


def test_no_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(tmp_path)]) == 2
    assert "folders must hold finished runs" in capsys.readouterr().err
