import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from saiopt.bench.rows import BenchRow

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the module that they are defined in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_gpu_script_can_be_tried_out_on_the_cpu(tmp_path, monkeypatch):
    module = script("gpu")
    monkeypatch.setattr(module, "RIVALS", ("sgd-foreach",))
    path = tmp_path / "gpu.csv"
    arguments = "--device cpu --shapes tiny --rounds 1 --steps 1 --out"
    module.main([*arguments.split(), str(path)])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    ran = {(r["optimizer"], r["dtype"]) for r in rows if r["status"] == "ok"}
    for dtype in ("float32", "bfloat16"):
        assert ("saiopt reference float32", dtype) in ran
        assert ("SGDM foreach", dtype) in ran


def test_the_gpu_script_goes_on_where_a_model_does_not_fit(tmp_path, monkeypatch):
    module = script("gpu")

    def run_bench(plan, observe):
        if plan.dtype == "float32":
            raise module.DoesNotFitError("too large")
        place = {"device": "cpu", "hardware": "", "threads": 1}
        return [
            BenchRow(
                optimizer="ours",
                package="saiopt",
                status="ok",
                shapes=plan.shapes,
                num_params=1,
                dtype=plan.dtype,
                torch="",
                commit=None,
                rounds=1,
                **place,
            )
        ]

    monkeypatch.setattr(module, "run_bench", run_bench)
    path = tmp_path / "gpu.csv"
    module.main(["--device", "cpu", "--shapes", "tiny", "--out", str(path)])
    with path.open() as file:
        assert [row["dtype"] for row in csv.DictReader(file)] == ["bfloat16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_the_gpu_script_refuses_a_machine_without_one(capsys):
    with pytest.raises(SystemExit) as stop:
        script("gpu").main([])
    assert stop.value.code == 2
    assert "device must be cpu where there is no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_predicted_blocks_are_what_the_gpu_allocates(tmp_path, monkeypatch):
    module = script("gpu")
    monkeypatch.setattr(module, "RIVALS", ("sgd-foreach", "adamw-foreach"))
    path = tmp_path / "gpu.csv"
    arguments = "--shapes gpt2 --dtypes float32 --rounds 1 --steps 1 --out"
    module.main([*arguments.split(), str(path)])
    with path.open() as file:
        rows = [r for r in csv.DictReader(file) if r["status"] == "ok"]
    for row in rows:
        allocated = int(row["allocated_bytes"])
        assert int(row["predicted_bytes"]) == pytest.approx(allocated, rel=0.01)


def test_the_step_time_script_writes_rows_and_a_picture(tmp_path):
    arguments = "--shapes tiny --optimizers sgd-loop --rounds 1 --steps 1 --out"
    script("step_time").main([*arguments.split(), str(tmp_path)])
    assert "SGDM loop" in (tmp_path / "step_time_cpu_tiny.csv").read_text()
    assert (tmp_path / "step_time_cpu_tiny.svg").stat().st_size > 1000


def test_the_budget_of_24_gib_is_what_a_step_takes():
    module = script("llama_24gb")
    task = module.small(3, 2000)
    budget = module.predict(task, "sgdsai-int8")
    held, temporary = module.measure(task, "sgdsai-int8", torch.device("cpu"))
    assert held == budget.weights + budget.state
    assert temporary == pytest.approx(budget.temporary, rel=0.03)


@pytest.mark.parametrize("optimizer", ["sgdsai-int8", "sgdsai-int4"])
def test_the_published_size_leaves_room_on_a_card_of_24_gib(optimizer):
    module = script("llama_24gb")
    budget = module.predict(module.PUBLISHED, optimizer)
    assert budget.weights == 2 * 6_738_415_616
    assert budget.peak < module.CARD_BYTES - 3 * module.GIB
