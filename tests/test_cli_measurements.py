"""The commands that measure: ``saiopt memory`` and ``saiopt bench``."""

import csv
import json
import re

import pytest
import torch

from saiopt.cli import main


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("lr resnet-digit", "recipe must be one of .* got resnet-digit"),
        ("lr resnet-digits --known nosuch", "optimizer must be one of .* got nosuch"),
        ("lr resnet-digits --known-lr 0", "known_lr must be positive .* got 0.0"),
        ("lr resnet-digits --gradients 0", "gradients must be at least 1, got 0"),
        ("memory", "models must name at least one, got none"),
        ("memory gpt9", "model must be one of gpt2, .* got gpt9"),
        ("memory gpt2 --shards 0", "shards must be >= 1, got 0"),
        ("memory gpt2 --dtype int8", "dtype must be one of float32, .* got int8"),
        ("memory gpt2 --state-dtype int2", "state_dtype must be one of .* got int2"),
        ("memory gpt2 --optimizers sgdm", "optimizers must be one of .* got sgdm"),
        ("memory nosuch:thing", "model must name a callable .* got nosuch:thing"),
        ("bench --shapes gpt9", "shapes must be one of tiny, .* got gpt9"),
        ("bench --optimizers sgdm", "optimizers must be one of .* got sgdm"),
        ("bench --rounds 0", "rounds must be >= 1, got 0"),
        ("bench --threads 0", "threads must be at least 1, got 0"),
        ("bench --plot bars.txt", "plot must end in .png, .svg, .pdf, got bars.txt"),
        ("bench --csv /dev/null/rows.csv", "csv must be a file that can be written"),
        ("bench --csv nosuch/rows.csv", "csv must be .*, got nosuch/rows.csv"),
        ("bench --plot nosuch/bars.png", "plot must be .*, got nosuch/bars.png"),
        ("memory gpt3", "did you mean gpt2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(command, sentence, capsys):
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("saiopt: ")
    assert re.search(sentence, captured.err)


def test_an_error_within_a_step_is_not_taken_for_bad_input(monkeypatch):
    def fail(*_):
        raise ValueError("from within a library")

    monkeypatch.setattr("saiopt.bench.run.bandwidth", fail)
    with pytest.raises(ValueError, match="from within a library"):
        main(["bench", "--shapes", "tiny", "--optimizers", "sgd-loop"])


def test_memory_prints_a_table_for_each_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    models = ["vit-s16", "resnet18"]
    assert main(["memory", *models, "--optimizers", "sgd", "sgdsai"]) == 0
    out = capsys.readouterr().out
    assert "vit-s16 · ViTForImageClassification · 22,050,664 parameters" in out
    assert "resnet18 · ResNetForImageClassification · 11,689,512 parameters" in out
    assert "SGD-SaI bf16" in out
    assert max(map(len, out.splitlines())) <= 80


def test_memory_of_a_small_model_has_a_unit_that_suits_it(
    capsys, monkeypatch, tmp_path
):
    (tmp_path / "small.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Linear(100, 100)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["memory", "small:net", "--optimizers", "adamw"]) == 0
    heading, row = capsys.readouterr().out.splitlines()[2:4]
    assert heading.startswith("KiB")
    assert "39.45" in row


def test_a_narrow_terminal_gets_rows_as_lines_and_whole_numbers(capsys, monkeypatch):
    command = ["memory", "gpt2-xl", "--optimizers", "adamw", "sgd"]
    numbers = {}
    for width in ("40", "60", "200"):
        monkeypatch.setenv("COLUMNS", width)
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "…" not in out
        assert max(map(len, out.splitlines())) <= int(width)
        numbers[width] = set(re.findall(r"\d+\.\d+", out))
    assert numbers["40"] == numbers["60"] == numbers["200"]


def test_memory_prints_nothing_but_json(capsys):
    arguments = "memory vit-s16 --optimizers sgdsai --state-dtype bfloat16 --json"
    assert main(arguments.split()) == 0
    captured = capsys.readouterr()
    (report,) = json.loads(captured.out)
    (row,) = report["rows"]
    assert row["optimizer"] == "SGD-SaI bf16"
    assert row["estimate"]["state_bytes_per_parameter"] == pytest.approx(2.0, abs=1e-3)


def test_bench_prints_json_and_writes_rows_and_picture(capsys, tmp_path):
    rows, bars = tmp_path / "rows.csv", tmp_path / "bars.png"
    threads = torch.get_num_threads()
    arguments = "bench --shapes tiny --rounds 1 --steps 2 --optimizers sgd-loop --json"
    files = ["--csv", str(rows), "--plot", str(bars), "--threads", str(threads)]
    assert main([*arguments.split(), *files]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["optimizer"], row["status"], row["num_steps"]) == ("SGDM loop", "ok", 2)
    with rows.open() as file:
        assert [r["optimizer"] for r in csv.DictReader(file)] == ["SGDM loop"]
    assert bars.read_bytes().startswith(b"\x89PNG")


def test_lr_proposes_a_learning_rate_and_names_the_recipes_own(capsys):
    command = "lr resnet-digits --gradients 1 --known-lr 0.001 --threads 1"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "adamw at lr 0.001 first moves an entry of resnet-digits" in printed
    assert "The recipe has 0.01 for it" in printed
    assert main([*command.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe_lr"] == 0.01
    assert f"lr = {found['lr']:.2g}" in printed
