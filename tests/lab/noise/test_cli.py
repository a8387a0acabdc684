import json
from pathlib import Path

import numpy as np
import pytest

from saiopt.cli import main

PERCEPTRON = [
    "noise", "perceptron", "--chi", "1", "--sizes", "8", "16", "--temperatures", "1",
    "--seeds", "2", "--dimension", "4", "--workers", "1",
]  # fmt: skip
PHASE = [
    "noise", "phase", "--alphas", "1", "--temperatures", "0.01", "0.05", "--sizes",
    "8", "--seeds", "1", "--width", "6", "--max-steps", "200",
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "printed"), [(PERCEPTRON, "‖w‖ in P"), (PHASE, "not fitted within")]
)
def test_a_study_prints_its_table_and_says_where_its_files_are(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    printed: str,
) -> None:
    assert main([*command, "--runs-dir", str(tmp_path)]) == 0
    assert printed in capsys.readouterr().out
    assert main([*command, "--runs-dir", str(tmp_path), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["folder"]
    assert list((tmp_path / folder).glob("*.png"))
    assert len(list(tmp_path.glob("*/cells.jsonl"))) == 1


def test_a_study_of_own_images_has_the_kernel_regime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).standard_normal((40, 3, 6, 6))
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(40) % 2)
    command = [
        "noise", "phase", "--data", str(tmp_path / "mine.npz"), "--alphas", "4096",
        "--temperatures", "0.001", "0.004", "0.016", "--sizes", "4", "8", "--seeds",
        "2", "--architecture", "mnas", "--layers", "1", "--activation", "gelu",
        "--width", "4", "--held-out", "16", "--precision", "float32",
        "--critical-alpha", "4096", "--runs-dir", str(tmp_path),
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "where noise decides" in printed
    assert "mean ± 95 % (n seeds)" in printed
    assert list(tmp_path.glob("*/*/kernel_regime.png"))


def test_the_published_net_is_trained_as_the_command_for_a_gpu_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).standard_normal((40, 3, 8, 8))
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(40) % 2)
    command = [
        "noise", "phase", "--architecture", "mnas-published", "--activation", "gelu",
        "--width", "2", "--alphas", "0.25", "4096", "--critical-alpha", "4096",
        "--temperatures", "0.001", "--sizes", "4", "8", "--seeds", "1", "--held-out",
        "16", "--precision", "float32", "--device", "cpu", "--data",
        str(tmp_path / "mine.npz"), "--runs-dir", str(tmp_path),
    ]  # fmt: skip
    assert main(command) == 0
    assert "3 networks fitted, 0 not fitted" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ConnectionError])
@pytest.mark.parametrize(
    ("command", "function"),
    [(PERCEPTRON, "perceptron.train_cell"), (PHASE, "phase.train_plane")],
)
def test_an_error_within_training_is_not_taken_for_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    function: str,
    kind: type[Exception],
) -> None:
    def fail(*_: object) -> None:
        raise kind("from within a library")

    monkeypatch.setattr(f"saiopt.lab.noise.{function}", fail)
    with pytest.raises(kind, match="from within a library"):
        main([*command, "--runs-dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*PERCEPTRON, "--sizes", "1"], "sizes must be at least batch_size, got 1"),
        ([*PERCEPTRON, "--workers", "0"], "workers must be at least 1, got 0"),
        ([*PERCEPTRON, "--seeds", "0"], "seeds must be at least 1, got 0"),
        ([*PERCEPTRON, "--sizes"], "sizes must be given at least one value, got none"),
        ([*PERCEPTRON, "--temperatures", "nan"], "temperatures must be finite, got"),
        ([*PERCEPTRON, "--chi", "1", "inf"], "chi must be finite, got [1.0, inf]"),
        ([*PHASE, "--alphas", "nan"], "alphas must hold finite numbers, got [nan]"),
        ([*PHASE, "--alphas", "inf", "1"], "alphas must hold finite numbers, got"),
        ([*PHASE, "--sizes", "5000"], "sizes must be at most 1285"),
        ([*PHASE, "--threads", "0"], "threads must be at least 1, got 0"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    assert main([*command, "--runs-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
