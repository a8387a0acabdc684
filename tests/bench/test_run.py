import csv
import json
from dataclasses import asdict, replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

from saiopt import SGDSaI
from saiopt.bench import plan as plan_module
from saiopt.bench import run
from saiopt.bench import samples as samples_module
from saiopt.bench.candidates import Candidate, candidates
from saiopt.bench.plan import Plan
from saiopt.bench.plot import plot_rows
from saiopt.bench.rows import write_csv
from saiopt.bench.run import run_bench
from saiopt.bench.samples import Bench, Samples
from saiopt.bench.shapes import allocate, skeleton
from saiopt.bench.table import ranked, renderables
from saiopt.lab.optimizers import OPTIMIZERS, OptimizerSpec, build_optimizer

CPU = torch.device("cpu")
NAMES = ("sgdsai-float32-reference", "sgd-fused", "adamw-loop")


def failing(model, lr, weight_decay):
    raise RuntimeError("no kernel\nfor you")


def candidate(label, build, **options):
    return Candidate(label, OptimizerSpec(build, {}, "", **options))


@pytest.fixture
def with_strangers(monkeypatch):
    known = candidates()
    known["absent"] = candidate("Absent", failing, package="no-such-package")
    known["broken"] = candidate("Broken", failing)
    monkeypatch.setattr(plan_module, "candidates", lambda: known)


@pytest.fixture(scope="module")
def rows():
    return run_bench(Plan("tiny", NAMES, rounds=2, steps=3))


def test_every_candidate_gets_its_steps_in_every_round(rows):
    assert [row.status for row in rows] == ["ok"] * 3
    assert [row.num_steps for row in rows] == [6] * 3
    for row in rows:
        assert 0 < row.step_ms_q1 <= row.step_ms <= row.step_ms_q3


def test_the_floor_is_20_bytes_for_momentum_and_28_for_adamw(rows):
    floors = [row.floor_bytes_per_param for row in rows]
    assert floors == pytest.approx([20, 20, 28], abs=0.01)
    for row in rows:
        seconds = row.floor_bytes_per_param * row.num_params / row.bandwidth_gb_per_s
        assert row.floor_ms == pytest.approx(seconds / 1e6)
        assert row.ratio_to_floor == pytest.approx(row.step_ms / row.floor_ms)


def test_only_our_own_calibration_is_timed_apart(rows):
    assert [row.calibration_ms is not None for row in rows] == [True, False, False]


def test_state_and_temporaries_are_measured(rows):
    ours, sgdm, adamw = rows
    assert sgdm.state_bytes_per_param == 4.0
    assert ours.state_bytes_per_param == pytest.approx(4.0, abs=1e-3)
    # A loop of AdamW holds a denominator as large as a parameter.
    assert adamw.temporary_bytes >= 4 * 512 * 128
    assert ours.temporary_bytes < 0.01 * 4 * ours.num_params
    assert sgdm.predicted_bytes >= 4 * sgdm.num_params


@pytest.mark.usefixtures("with_strangers")
def test_what_is_absent_or_fails_is_named_and_the_others_run():
    names = ("absent", "sgd-loop", "broken")
    absent, sgdm, broken = run_bench(Plan("tiny", names, rounds=1, steps=1))
    assert (absent.status, absent.package) == (
        "not installed",
        "no-such-package",
    )
    assert broken.status == "RuntimeError: no kernel"
    assert sgdm.step_ms > 0
    assert absent.step_ms is broken.step_ms is None
    assert ranked([absent, sgdm, broken]) == [sgdm]


@pytest.mark.usefixtures("with_strangers")
def test_a_failure_between_rounds_is_named_too():
    samples = Samples()
    model = skeleton("tiny")
    allocate(model, torch.float32, CPU)
    bench = Bench(model, CPU, steps=1)
    bench.sample(plan_module.candidates()["broken"], samples)
    assert samples.failure == "RuntimeError: no kernel"


def test_rounds_visit_all_candidates_in_changing_order(monkeypatch):
    visited = []
    monkeypatch.setattr(run, "bandwidth", lambda params, device: 1e9)

    def sample(self, candidate, samples):
        visited.append(candidate.label)
        samples.step_seconds.append(1.0)
        samples.first_step_seconds.append(1.0)

    monkeypatch.setattr(run.Bench, "sample", sample)
    run_bench(Plan("tiny", NAMES, rounds=4))
    visits = [tuple(visited[i : i + 3]) for i in range(0, 12, 3)]
    assert len({frozenset(visit) for visit in visits}) == 1
    assert len(set(visits)) > 1


def test_a_candidate_that_takes_seconds_is_timed_once(monkeypatch):
    monkeypatch.setattr(samples_module, "_SLOW_SECONDS", 0.0)
    (row,) = run_bench(Plan("tiny", ("sgd-loop",), rounds=3, steps=5))
    assert row.num_steps == 1


def test_the_timed_calibration_calibrates_on_state_that_exists():
    model = nn.Linear(4, 4, bias=False)
    model.weight.grad = torch.randn(4, 4)
    seen = []

    def build(trained, lr, weight_decay):
        optimizer = SGDSaI(trained.parameters())
        step = optimizer.step

        def watched():
            scale = optimizer.state[model.weight]["scale"]
            before = scale.item()
            step()
            seen.append((before, scale.item() > 0))

        optimizer.step = watched
        return optimizer

    bench = Bench(model, CPU, steps=1)
    bench._time_calibration(candidate("ours", build, is_ours=True), Samples())
    assert seen == [(0.0, True)]


def test_steps_of_whole_matrices_run_where_they_are_asked_for_only():
    usual = Plan("tiny").chosen
    assert "sgdsai-factored-int4" in usual
    assert not [name for name in usual if "orthogonal" in name or "muon" in name]
    others = {"muon", "sgdsai-orthogonal-float32", "sgdsai-orthogonal-int4"}
    assert others <= set(candidates()) - set(usual)
    assert set(Plan("tiny", ("muon",)).chosen) == {"muon"}


def test_everything_that_the_lab_trains_with_can_be_timed_under_its_name():
    known = candidates()
    assert set(OPTIMIZERS) <= set(known)
    for name, spec in OPTIMIZERS.items():
        assert known[name].spec == spec


def test_an_execution_is_what_its_param_groups_ask_for():
    model = skeleton("tiny")
    allocate(model, torch.float32, CPU)
    for name in ("adamw-fused", "sgd-foreach", "sgdsai-int8-reference"):
        *_, kind = name.split("-")
        optimizer = candidates()[name].build(model)
        optimizer.step()
        for group in optimizer.param_groups:
            flags = (bool(group["foreach"]), bool(group["fused"]))
            assert flags == (kind == "foreach", kind == "fused")


def test_what_the_loop_would_train_is_what_is_timed():
    model = skeleton("tiny")
    allocate(model, torch.float32, CPU)
    timed = candidates()["adam-mini"].build(model)
    trained = build_optimizer("adam-mini", model, 1e-6, 0.1, seed=0)
    assert type(timed) is type(trained)
    for one, other in zip(timed.param_groups, trained.param_groups, strict=True):
        assert {**one, "params": None} == {**other, "params": None}


def test_rules_by_role_take_the_bytes_of_one_state_and_muon_more():
    kinds = {"float32": 4.1, "bf16": 2.1, "int8": 1.16, "int4": 0.66}
    names = [f"sgdsai-{r}-{k}" for r in ("orthogonal", "factored") for k in kinds]
    rows = run_bench(Plan("tiny", (*names, "muon"), rounds=1, steps=1))
    assert {row.status for row in rows} == {"ok"}
    *ours, muon = rows
    for row, most in zip(ours, [*kinds.values()] * 2, strict=True):
        assert row.state_bytes_per_param <= most
        assert row.calibration_ms is not None
    # Both states of the embedding and of the norm, one of the rest.
    rest = (64 * 128 + 128) / muon.num_params
    assert muon.state_bytes_per_param == pytest.approx(4 + 4 * rest, abs=1e-3)


def test_what_is_timed_after_the_first_step_no_longer_measures():
    model = skeleton("tiny")
    allocate(model, torch.float32, CPU)
    optimizer = candidates()["sgdsai-orthogonal-float32"].build(model)
    for _ in range(3):
        optimizer.step()
    rules = {g["role"]: g["scaling"] for g in optimizer.param_groups}
    assert rules == {
        "embedding": "factored",
        "hidden": "orthogonal",
        "vector": "factored",
    }
    measured = [e["num_measured"] for e in optimizer.state.values() if len(e) > 2]
    assert [int(n) for n in measured] == [1, 1]


def test_rows_are_written_as_csv_with_a_heading(rows, tmp_path):
    path = tmp_path / "new" / "rows.csv"
    write_csv(rows, path)
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert [r["optimizer"] for r in read] == [row.optimizer for row in rows]
    assert float(read[1]["step_ms"]) == pytest.approx(rows[1].step_ms, rel=1e-5)
    assert read[0]["hardware"]
    assert read[0]["torch"] == torch.__version__
    json.dumps([asdict(row) for row in rows])


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_cut_or_wider_than_the_terminal(rows, width):
    console = Console(width=width, file=StringIO())
    longest = max((c.label for c in candidates().values()), key=len)
    slow = replace(
        rows[0],
        optimizer=longest,
        step_ms=2345.6,
        step_ms_q1=2300.0,
        step_ms_q3=12345.0,
    )
    failed = replace(rows[0], optimizer="other", step_ms=None, status="not installed")
    for item in renderables([*rows, slow, failed]):
        console.print(item)
    text = console.file.getvalue()
    # An ellipsis stands between the quartiles; a cut cell ends with one.
    assert "… " in text
    assert not [line for line in text.splitlines() if line.rstrip().endswith("…")]
    assert max(map(len, text.splitlines())) <= width
    assert "2300 … 12345" in text
    assert "other: not installed" in text


def test_the_picture_names_every_optimizer_that_ran(rows, tmp_path):
    failed = replace(rows[0], optimizer="absent one", step_ms=None)
    path = tmp_path / "bars.svg"
    plot_rows([*rows, failed], path)
    text = path.read_text()
    for row in rows:
        assert f"<!-- {row.optimizer} -->" in text
    assert "absent one" not in text
    with pytest.raises(ValueError, match="rows must hold one that ran"):
        plot_rows([failed], path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": ("sgdm",)}, "optimizers must be one of sgdsai.* got sgdm"),
        ({"dtype": "int8"}, "dtype must be one of float32, .* got int8"),
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"device": "tpu"}, "device must be cpu or cuda, got tpu"),
    ],
)
def test_bad_input_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"shapes": "tiny", **options})


def test_unknown_shapes_are_refused():
    with pytest.raises(
        ValueError, match=r"shapes must be one of tiny, gpt2.* got gpt9"
    ):
        run_bench(Plan("gpt9"))


def test_shapes_that_do_not_fit_in_memory_are_refused(monkeypatch):
    monkeypatch.setattr(run, "_free_bytes", lambda device: 10**6)
    with pytest.raises(ValueError, match="shapes must fit in free memory"):
        run_bench(Plan("tiny"))
