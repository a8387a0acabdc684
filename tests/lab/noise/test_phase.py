import dataclasses
import json
from pathlib import Path

import pytest
import torch

from saiopt.lab.noise.parity import load_images
from saiopt.lab.noise.phase import Settings, open_cells, plan, train_cells
from saiopt.lab.noise.phase_report import Findings, find, report_folder, write_report
from saiopt.lab.noise.phase_table import lost_text, trust_text
from saiopt.lab.noise.power_law import Exponent

CPU = torch.device("cpu")
SMALL = Settings(width=8, batch_size=4, max_steps=400, held_out=50)
CELLS = plan(["sgd"], [0.5, 8.0], [1e-9, 0.05, 50.0], [8, 12], seeds=2)


def test_the_plan_is_a_plane_at_the_middle_size_and_a_row_at_the_others() -> None:
    cells = plan(["sgd"], [0.1, 1.0, 10.0], [0.5], [4, 8, 16], seeds=1)
    assert {(cell.size, cell.alpha) for cell in cells} == {
        (8, 0.1), (8, 1.0), (8, 10.0), (4, 1.0), (16, 1.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["adam"], [1.0], [1.0], [4], 1), "optimizer must be one of sgd, .*got adam"),
        ((["sgd"], [], [1.0], [4], 1), "alphas must hold positive numbers, got none"),
        ((["sgd"], [1.0], [-1.0], [4], 1), "temperatures must hold .*got -1.0"),
        ((["sgd"], [1.0], [1.0], [4], 0), "seeds must be at least 1, got 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "vit"),
        ("width", 0),
        ("max_steps", 0),
        ("layers", 0),
        ("activation", "tanh"),
        ("precision", "float16"),
        ("held_out", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        Settings(**{field: value})


def test_more_points_than_the_data_have_are_refused(tmp_path: Path) -> None:
    images = load_images("digits")
    folder = open_cells(SMALL, images, tmp_path, CPU)
    cells = plan(["sgd"], [1.0], [1.0], [1748], seeds=1)
    with pytest.raises(ValueError, match=r"sizes must be at most 1747 .*got 1748"):
        train_cells(SMALL, cells, images, folder, CPU, lambda *_: None)


def test_a_study_goes_on_where_it_was_stopped_and_reports_every_network(
    tmp_path: Path,
) -> None:
    images = load_images("digits")
    whole = open_cells(SMALL, images, tmp_path / "whole", CPU)
    rows = train_cells(SMALL, CELLS, images, whole, CPU, lambda *_: None)
    part = open_cells(SMALL, images, tmp_path / "part", CPU)

    def stop(made: int, step: int) -> None:
        if made and step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cells(SMALL, CELLS, images, part, CPU, stop)
    kept = len(part.rows())
    assert 0 < kept < len(CELLS)
    made: list[int] = []
    again = train_cells(
        SMALL, CELLS, images, part, CPU, lambda count, _: made.append(count)
    )
    assert made[0] == kept
    assert sum(made) == len(CELLS)
    # Another set of networks beside it moves a network's last bits.
    for first, second in zip(rows, again, strict=True):
        assert first["status"] == second["status"]
        assert first["weight_change"] == pytest.approx(second["weight_change"])

    findings = find(rows)
    assert sum(findings.counts.values()) == len(CELLS)
    assert min(findings.counts.values()) > 0
    assert "diverged" in lost_text(findings)
    assert "fewer than two P" in trust_text(findings, SMALL.depth)
    folder = report_folder(whole.path.parent, rows)
    write_report(folder, "digits", rows, findings)
    assert {path.name for path in folder.iterdir()} == {
        "findings.json", "plane.png", "plane.svg", "critical.png", "critical.svg",
    }  # fmt: skip
    assert report_folder(whole.path.parent, rows[:-1]) != folder


def test_the_critical_alpha_is_that_which_was_asked_for() -> None:
    cells = plan(["sgd"], [0.5, 8.0], [0.5, 1.0], [4, 8, 16], 2, critical_alpha=64.0)
    assert {(cell.size, cell.alpha) for cell in cells} == {
        (8, 0.5), (8, 8.0), (4, 64.0), (8, 64.0), (16, 64.0),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^critical_alpha must be positive .*got -1"):
        plan(["sgd"], [1.0], [1.0], [4], 1, critical_alpha=-1.0)


def test_other_settings_have_another_folder(tmp_path: Path) -> None:
    images = load_images("digits")
    wide = dataclasses.replace(SMALL, width=9)
    folders = [open_cells(s, images, tmp_path, CPU).path for s in (SMALL, wide)]
    assert folders[0] != folders[1]


def test_other_code_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_images("digits")
    before = open_cells(SMALL, images, tmp_path, CPU)
    assert open_cells(SMALL, images, tmp_path, CPU).path == before.path
    monkeypatch.setattr("saiopt.lab.noise.phase.code_hash", lambda *_: "edited")
    after = open_cells(SMALL, images, tmp_path, CPU)
    assert after.path != before.path
    origin = json.loads((after.path.parent / "environment.json").read_text())
    assert origin["code"] == "edited"


@pytest.mark.parametrize(
    "exponent", [None, Exponent(0.5, 0.1, 3, 0.0)], ids=["without", "with an exponent"]
)
def test_the_theory_is_that_of_the_architecture(exponent: Exponent | None) -> None:
    findings = Findings(64, 1.0, [], exponent, [], None, {})
    depths = [Settings(architecture=name).depth for name in ("fc", "mnas")]
    deep, other = (trust_text(findings, depth) for depth in depths)
    assert "theory for 5 layers: 0.67)" in deep
    shallow = trust_text(findings, Settings(layers=2).depth)
    assert "theory for 2 layers: 0.33)" in shallow
    assert "theory" not in other
