import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi as chi_distribution
from scipy.stats import kstest

from saiopt.lab.atomic import alone
from saiopt.lab.noise.perceptron import (
    Cell,
    Settings,
    open_cells,
    plan,
    train_cell,
    train_cells,
)
from saiopt.lab.noise.perceptron_data import numpy_generator, signed_points
from saiopt.lab.noise.perceptron_exponents import fit_all, theory
from saiopt.lab.noise.perceptron_table import unfitted_text
from saiopt.lab.training.run_folder import RunFolderError

SMALL = Settings(dimension=4)
CELLS = plan([1.0], [8, 16, 32], [1.0], seeds=2)


@pytest.mark.parametrize("chi", [0.0, 1.0, 3.0])
def test_the_first_coordinate_has_the_density_of_chi_and_the_others_are_normal(
    chi: float,
) -> None:
    points = 3 * signed_points(4000, 9, chi, numpy_generator(chi))
    assert kstest(points[:, 0], chi_distribution(chi + 1).cdf).pvalue > 1e-3
    assert kstest(points[:, 1:].ravel(), "norm").pvalue > 1e-3


def test_the_plan_crosses_two_sweeps_at_their_middles() -> None:
    cells = plan([0.0], [4, 8, 16], [0.1, 1.0, 10.0], seeds=1)
    assert {(cell.size, cell.temperature) for cell in cells} == {
        (4, 1.0), (8, 1.0), (16, 1.0), (8, 0.1), (8, 10.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [4], [1.0], 1), "chi must hold at least one value"),
        (([-1.0], [4], [1.0], 1), "chi must be greater than -1, got -1"),
        (([0.0], [1], [1.0], 1), "sizes must be at least 2, got 1"),
        (([0.0], [4], [0.0], 1), "temperatures must be positive, got 0"),
        (([0.0], [4], [1.0], 0), "seeds must be at least 1, got 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


def test_temperature_is_a_unit_of_the_weights_where_alpha_is_large() -> None:
    cold, hot = (train_cell(SMALL, Cell(1.0, 16, t, 0)) for t in (1e3, 1e6))
    for row in (cold, hot):
        assert row["norm"] == pytest.approx(np.hypot(row["signal"], row["noise"]))
        assert row["time"] == 2 * row["temperature"] * row["steps"]
    # Other batches, the same points: equal up to the scatter of batches.
    assert hot["norm"] / cold["norm"] == pytest.approx(1000, rel=0.9)


def test_a_second_call_trains_only_what_is_missing(tmp_path: Path) -> None:
    folder = open_cells(SMALL, tmp_path)
    seen: list[bool] = []
    first = train_cells(SMALL, CELLS[:4], folder, 1, lambda _, reused: None)
    second = train_cells(SMALL, CELLS, folder, 1, lambda _, reused: seen.append(reused))
    assert second[:4] == first
    assert seen == [True] * 4 + [False] * 2
    lines = folder.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == second


def test_a_line_that_was_torn_is_made_again(tmp_path: Path) -> None:
    folder = open_cells(SMALL, tmp_path)
    rows = train_cells(SMALL, CELLS, folder, 1, lambda *_: None)
    whole = folder.path.read_bytes()
    folder.path.write_bytes(whole[:-20])
    assert train_cells(SMALL, CELLS, folder, 1, lambda *_: None) == rows
    assert folder.path.read_bytes() == whole


def test_a_line_that_another_process_is_writing_is_not_cut_off(tmp_path: Path) -> None:
    folder = open_cells(SMALL, tmp_path)
    [row, other] = train_cells(SMALL, CELLS[:2], folder, 1, lambda *_: None)
    lines = folder.path.read_bytes().splitlines(keepends=True)
    with ThreadPoolExecutor() as pool:
        with alone(folder.path.parent / "lock"):
            folder.path.write_bytes(lines[0] + lines[1][:20])
            reading = pool.submit(folder.rows)
            assert wait([reading], timeout=0.5).not_done
            with folder.path.open("ab") as file:
                file.write(lines[1][20:])
        assert reading.result(timeout=60) == [row, other]
    assert folder.path.read_bytes() == b"".join(lines)


def test_a_damaged_line_is_not_overwritten(tmp_path: Path) -> None:
    folder = open_cells(SMALL, tmp_path)
    folder.path.write_text("nonsense\n")
    with pytest.raises(RunFolderError, match=r"cells.jsonl must hold"):
        train_cells(SMALL, CELLS, folder, 1, lambda *_: None)
    assert folder.path.read_text() == "nonsense\n"


def test_other_code_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_cells(SMALL, tmp_path).path
    assert open_cells(SMALL, tmp_path).path == before
    monkeypatch.setattr("saiopt.lab.noise.perceptron.code_hash", lambda *_: "edited")
    assert open_cells(SMALL, tmp_path).path != before


def test_processes_give_the_rows_of_one_process(tmp_path: Path) -> None:
    alone = [train_cell(SMALL, cell) for cell in CELLS]
    folder = open_cells(SMALL, tmp_path)
    assert train_cells(SMALL, CELLS, folder, 2, lambda *_: None) == alone


def test_a_run_out_of_events_is_named_and_kept_out_of_the_fits() -> None:
    tight = Settings(dimension=4, max_events=12)
    rows = [train_cell(tight, cell) for cell in plan([0.0], [4, 8, 64], [1.0], 2)]
    assert [row["fitted"] for row in rows][-2:] == [False, False]
    fits = fit_all(rows)
    counts = [fit.unfitted for fit in fits if fit.against == "size"]
    assert counts == [2, 2]
    assert "Not fitted after 12 events" in unfitted_text(fits, 12)


def test_theory_is_that_of_the_paper() -> None:
    assert [theory(chi, "norm", "size") for chi in (0, 1, 3)] == [1, 0.5, 0.25]
    assert [theory(chi, "time", "size") for chi in (0, 1, 3)] == [3, 2, 1.5]
    assert theory(3, "time", "temperature") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("dimension", 1), ("batch_size", 0), ("alpha", 0.0), ("max_events", 0)],
)
def test_a_setting_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        Settings(**{field: value})
