import dataclasses
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from saiopt.lab.comparison.compare import prepare
from saiopt.lab.measurement.gsnr import measure_gsnr
from saiopt.lab.recipe import Recipe
from saiopt.lab.training.run import Run

CPU = torch.device("cpu")


def test_a_finished_run_gives_back_what_was_measured(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0, gsnr_every=6)
    task = prepare([run])
    first = measure_gsnr(run, task, tmp_path, CPU, lambda _: None)
    again = measure_gsnr(run, task, tmp_path, CPU, lambda _: None)
    assert again == first
    assert sorted({row.step for row in first.rows}) == [0, 6, 11]
    written = json.loads((first.folder / "gsnr.json").read_text())
    assert [row["gsnr"] for row in written] == [row.gsnr for row in first.rows]
    assert (first.folder / "gsnr.png").exists()
    assert (first.folder / "gsnr.svg").exists()


def test_processes_that_measure_the_same_draw_one_after_the_other(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0, gsnr_every=6)
    task = prepare([run])
    measure_gsnr(run, task, tmp_path, CPU, lambda _: None)
    drawing: list[str] = []

    def draw(*_: object) -> None:
        drawing.append("begins")
        time.sleep(0.2)
        drawing.append("ends")

    def measure(_: int) -> None:
        measure_gsnr(run, task, tmp_path, CPU, lambda _: None)

    monkeypatch.setattr("saiopt.lab.measurement.gsnr.plot_gsnr", draw)
    with ThreadPoolExecutor() as pool:
        list(pool.map(measure, range(3)))
    assert drawing == ["begins", "ends"] * 3


def test_the_first_measurement_is_the_optimizers_scale(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = dataclasses.replace(Run(tiny, "sgdsai", 0.1, 0), gsnr_every=1)
    task = prepare([run])
    rows = measure_gsnr(run, task, tmp_path, CPU, lambda _: None).rows
    model = task.build_model(0)
    task.loss(model, task.batch(0, 0, tiny.batch_size)).backward()
    for row in (row for row in rows if row.step == 0):
        grad = model.get_parameter(row.block).grad.double()
        expected = grad.norm() / (grad.std() + 1e-8)
        assert row.gsnr == pytest.approx(expected.item(), rel=1e-6)
        assert row.ratio == pytest.approx(row.gsnr / math.sqrt(grad.numel()))
