import json

import pytest

from saiopt.lab.studies.ledger import Ledger
from saiopt.lab.training.run_folder import RunFolderError


def opened(folder):
    return Ledger(folder / "rows.jsonl", folder / "lock", lambda row: row["cell"])


def test_a_row_is_never_replaced(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    assert first.add([{"cell": 1, "value": 2}]) == [None]
    assert second.add([{"cell": 1, "value": 3}]) == [{"cell": 1, "value": 2}]
    assert opened(tmp_path).rows() == second.rows() == [{"cell": 1, "value": 2}]


def test_what_another_process_has_added_is_seen_when_it_is_asked_for(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    second.add([{"cell": 1}])
    assert {"cell": 1} not in first
    assert first.rows() == [{"cell": 1}]
    assert {"cell": 1} in first


def test_rows_are_sorted_where_all_have_a_place(tmp_path):
    ledger = opened(tmp_path)
    ledger.add([{"cell": 2}, {"cell": 1}])
    ledger.sort([{"cell": 1}])
    assert [row["cell"] for row in ledger.rows()] == [2, 1]
    ledger.sort([{"cell": 0}, {"cell": 1}, {"cell": 2}])
    assert [row["cell"] for row in opened(tmp_path).rows()] == [1, 2]


@pytest.mark.parametrize(("end", "cells"), [('{"cell": 2}', [1, 2, 3]), ("{", [1, 3])])
def test_a_last_line_without_its_end_counts_if_it_is_whole(tmp_path, end, cells):
    (tmp_path / "rows.jsonl").write_text('{"cell": 1}\n' + end)
    ledger = opened(tmp_path)
    ledger.add([{"cell": 3}])
    assert [row["cell"] for row in ledger.rows()] == cells
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == cells


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"other": 1}'])
def test_a_damaged_line_is_named_and_left_alone(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(RunFolderError, match=r"rows.jsonl must hold one finished cell"):
        opened(tmp_path)
    assert path.read_text() == f"{line}\n"


def test_only_a_new_row_brings_its_origin(tmp_path):
    ledger = opened(tmp_path)
    ledger.add([{"cell": 1}], {"torch": "a"})
    ledger.add([{"cell": 1}], {"torch": "b"})
    origins = json.loads((tmp_path / "environment.json").read_text())
    assert list(origins.values()) == [{"torch": "a"}]
