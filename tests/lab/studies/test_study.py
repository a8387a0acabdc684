import json

import pytest

from saiopt.lab.recipe import override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.studies.study import Cell, results_of
from saiopt.lab.studies.study_options import parser, recipes_of, runs_of
from saiopt.lab.training.outcome import code_of
from saiopt.lab.training.run import Run
from saiopt.lab.training.run_folder import RunFolderError


def cells(*seeds):
    recipe = override(get_recipe("resnet-digits"), {"steps": "2", "eval_every": "2"})
    return [
        Cell(Run(recipe, "sgdsai", 0.01, seed), {"variant": "short"}) for seed in seeds
    ]


def options(tmp_path, *arguments):
    made = parser("A study.", tmp_path, ["resnet-digits"], [0])
    runs = ["--runs-dir", str(tmp_path / "runs")]
    return made.parse_args(["--workers", "1", *runs, *arguments])


def with_value(outcome):
    return {"value": outcome.value}


def test_cells_become_rows_that_name_what_was_trained(tmp_path):
    said = []
    rows = results_of(cells(0), options(tmp_path), said.append, extract=with_value)
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert rows == [row]
    assert (row["recipe"], row["seed"]) == ("resnet-digits", 0)
    assert row["labels"] == {"variant": "short"}
    assert row["status"] == "finished"
    assert row["value"] == row["accuracy"]
    origin = json.loads((tmp_path / "environment.json").read_text())
    assert origin[row["environment"]]["threads"] == 1
    run = cells(0)[0].run
    code = code_of(run.recipe, run.recipe.task.load())
    assert origin[row["environment"]]["code"] == code
    assert len(said) == 1


def test_cells_of_one_run_train_it_once(tmp_path):
    [cell] = cells(0)
    twice = [cell, Cell(cell.run, {"variant": "again"})]
    rows = results_of(twice, options(tmp_path), print)
    assert [row["labels"]["variant"] for row in rows] == ["short", "again"]
    assert rows[0]["run"] == rows[1]["run"]


def test_a_failure_ends_the_study_and_keeps_the_rows_that_are_made(tmp_path):
    results_of(cells(1), options(tmp_path), print)
    [row] = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    (tmp_path / "results.jsonl").unlink()
    (tmp_path / "runs" / row["run"] / "result.json").write_text("{")
    with pytest.raises(RunFolderError):
        results_of(cells(*range(16)), options(tmp_path, "--workers", "2"), print)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    seeds = [json.loads(line)["seed"] for line in lines]
    assert 0 in seeds
    # Those after the failure may have begun before it, but not all.
    assert len(seeds) < 15


def test_a_repetition_says_that_it_is_equal_and_changes_nothing(tmp_path):
    results_of(cells(0, 1), options(tmp_path), print)
    before = (tmp_path / "results.jsonl").read_bytes()
    said = []
    again = options(tmp_path, "--runs-dir", str(tmp_path / "others"))
    rows = results_of(cells(1), again, said.append)
    assert said[-1] == "1 of 1 repeated rows equal the committed ones"
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert [row["seed"] for row in rows] == [0, 1]


def test_a_row_that_comes_out_otherwise_is_refused_and_kept(tmp_path):
    results_of(cells(0), options(tmp_path), print)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1'))
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="1 rows differ"):
        results_of(cells(0), options(tmp_path), print)
    assert path.read_bytes() == before


def test_a_row_of_another_processor_is_told_from_one_of_other_code(tmp_path):
    results_of(cells(0), options(tmp_path), print)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1'))
    with pytest.raises(SystemExit) as same:
        results_of(cells(0), options(tmp_path), print)
    assert "made with" not in str(same.value)
    origins = json.loads((tmp_path / "environment.json").read_text())
    for origin in origins.values():
        here, origin["hardware"] = origin["hardware"], "another"
    (tmp_path / "environment.json").write_text(json.dumps(origins))
    with pytest.raises(SystemExit, match="made with hardware another") as other:
        results_of(cells(0), options(tmp_path), print)
    assert f"here {here}, which need not give the same bits" in str(other.value)


def test_two_processes_of_a_study_keep_each_others_rows(tmp_path, monkeypatch):
    def meanwhile(line):
        if '"seed": 0' in line:
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(
                    "saiopt.lab.training.environment.commit", lambda: "another"
                )
                results_of(cells(5), options(tmp_path), print)

    rows = results_of(cells(0, 1), options(tmp_path), meanwhile)
    assert [row["seed"] for row in rows] == [0, 5, 1]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    origins = json.loads((tmp_path / "environment.json").read_text())
    assert len(origins) == 2
    assert origins.keys() == {row["environment"] for row in rows}


def test_a_row_that_another_process_has_made_meanwhile_is_compared_with(tmp_path):
    path = tmp_path / "results.jsonl"
    said = []

    def meanwhile(line):
        said.append(line)
        if '"seed": 0' in line:
            results_of(cells(1, 2), options(tmp_path), print)
            lines = path.read_text().splitlines()
            lines[-1] = lines[-1].replace('"accuracy": ', '"accuracy": 1')
            path.write_text("\n".join(lines) + "\n")

    with pytest.raises(SystemExit, match="1 rows differ"):
        results_of(cells(0, 1, 2), options(tmp_path), meanwhile)
    assert said[-1] == "1 of 2 repeated rows equal the committed ones"
    seeds = [json.loads(line)["seed"] for line in path.read_text().splitlines()]
    assert seeds == [0, 1, 2]


def test_rows_keep_the_order_of_the_cells(tmp_path):
    results_of(cells(1), options(tmp_path), print)
    rows = results_of(cells(0, 1), options(tmp_path), print)
    assert [row["seed"] for row in rows] == [0, 1]


def test_drawing_trains_nothing(tmp_path):
    assert results_of(cells(0), options(tmp_path, "--draw"), print) == []
    assert not (tmp_path / "runs").exists()


def test_settings_need_a_folder_of_their_own(tmp_path):
    (tmp_path / "study.py").touch()
    with pytest.raises(SystemExit, match="out must name another folder"):
        recipes_of(options(tmp_path, "--set", "steps=3"))
    elsewhere = ("--out", str(tmp_path / "elsewhere"))
    [recipe] = recipes_of(options(tmp_path, "--set", "steps=3", *elsewhere))
    assert recipe.steps == 3
    with pytest.raises(SystemExit, match=r"^field in set must be one of .*mean steps"):
        recipes_of(options(tmp_path, "--set", "stops=3", *elsewhere))
    with pytest.raises(SystemExit, match="set must be NAME=VALUE, got steps"):
        recipes_of(options(tmp_path, "--set", "steps", *elsewhere))


def test_learning_rates_may_be_given_with_a_folder_for_their_rows(tmp_path):
    [run] = runs_of(options(tmp_path, "--lr", "sgdsai=0.25"), ["sgdsai"])
    assert run.lr == 0.25
    (tmp_path / "study.py").touch()
    with pytest.raises(SystemExit, match="out must name another folder"):
        runs_of(options(tmp_path, "--lr", "sgdsai=0.25"), ["sgdsai"])


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("sgdsai", "lr must be NAME=VALUE, got sgdsai"),
        ("sgdsai=x", "lr must be a number, got x"),
        ("sgdsai=-1", "lr must be"),
        ("adamw=1", "optimizer in lr must be one of sgdsai, got adamw"),
    ],
)
def test_a_wrong_learning_rate_is_one_sentence(tmp_path, given, rule):
    with pytest.raises(SystemExit, match=rule):
        runs_of(options(tmp_path, "--lr", given), ["sgdsai"])
