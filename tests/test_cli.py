import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

from saiopt.cli import main

COMPARE = ["compare", "vit-digits", *TINY, "--steps", "200"]
TWO = ["--optimizers", "sgdsai", "adamw"]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    # Where the tests run in a shell's background, interrupts are ignored, and so they
    # would be in what is started.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "saiopt", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, "it ended too early to be stopped"
        time.sleep(0.002)


def metrics(runs_dir: Path) -> dict[str, Any]:
    """The result of every run without its times."""
    return {
        path.parent.name: {
            key: value
            for key, value in json.loads(path.read_text()).items()
            if not key.endswith("_seconds")
        }
        for path in runs_dir.glob("vit-*/result.json")
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs_dir = tmp_path_factory.mktemp("reference")
    assert main([*COMPARE, *TWO, "--runs-dir", str(runs_dir)]) == 0
    return metrics(runs_dir)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("compare foo", "recipe must be one of gpt-stdlib, vit-digits, .*, got foo"),
        ("train foo", "recipe must be one of gpt-stdlib, vit-digits, .*, got foo"),
        ("compare", "recipe must be given; see saiopt compare --help"),
        ("", "command must be one of compare, train, .*, got none"),
        ("frobnicate", "command must be one of compare, .*, got frobnicate"),
        ("compar", "command must be one of .* got compar; did you mean compare?"),
        ("noise", "noise must be one of perceptron, phase, got none"),
        ("noise phas", "noise must be .* got phas; did you mean phase?"),
        ("train VIT-digits", "recipe must .* VIT-digits; did you mean vit-digits?"),
        # What has a place has no option.
        ("runs --folders a", "option must be one of --csv, .* got --folders"),
        ("train --recipe a", "option must be one of --set, .* got --recipe"),
        (
            "compare vit-digits --stps 3",
            "option must be one of .* got --stps; did you mean --steps?",
        ),
        ("train vit-digits 3", "Unrecognized options: 3"),
        ("compare vit-digits --steps abc", "steps must be a whole number, got abc"),
        ("train vit-digits --lr abc", "lr must be a number, got abc"),
        ("train vit-digits --lr", "lr must be given a value, got none"),
        ("train vit-digits --device tpu", "device must be one of cpu, cuda, got tpu"),
        ("sweep vit-digits --lrs 1 x", "lrs must be a number, got x"),
        ("sweep vit-digits --published a", "published must be one of vit-s.*, got a"),
        ("noise phase --optimizer adam", "optimizer must be one of sgd, .*, got adam"),
        ("noise phase --temperatures nan", "temperatures must hold finite numbers.*"),
        ("noise perceptron --temperatures nan", "temperatures must be finite, got .*"),
        ("noise phase --data mnist --source no", "source must be a folder .* got no"),
        (
            "train resnet18-cifar10 --set task.data=no",
            "task.data must be a folder that exists, or owner/name on the hub, got no",
        ),
        *(
            (f"{command} {option}", f"{name} must be given at least one value, .*none")
            for command, option, name in (
                ("compare vit-digits", "--optimizers", "optimizers"),
                ("compare vit-digits", "--seeds", "seeds"),
                ("compare vit-digits", "--lr --threads 1", "lr"),
                ("train vit-digits", "--set", "set"),
                ("sweep vit-digits", "--lrs", "lrs"),
                ("sweep vit-digits", "--weight-decays", "weight_decays"),
                ("memory gpt2", "--optimizers", "optimizers"),
                ("memory gpt2", "--state-dtype", "state_dtype"),
                ("bench", "--optimizers", "optimizers"),
                ("noise phase", "--alphas", "alphas"),
            )
        ),
        ("sweep vit-digits --trials 5", "trials must be left out without --sampler .*"),
        ("recipes vit-digit", "recipe must .* vit-digit; did you mean vit-digits?"),
        ("train vit-digits --seed 99999999999999999999", "seed must be below 2^63, .*"),
        ("compare vit-digits --steps -3", "steps must be at least 1, got -3"),
        (
            "compare vit-digits --optimizers adamax",
            "optimizer must be one of .* got adamax",
        ),
        (
            "compare vit-digits --optimizers sgd sgd",
            "optimizers must be given each once",
        ),
        ("compare vit-digits --seeds 1 1", "seeds must be given each once, got 1 1"),
        ("compare vit-digits --seeds -1", "seed must be at least 0, got -1"),
        ("compare vit-digits --lr adamw", "lr must be given as name=value"),
        ("compare vit-digits --lr adamw=x", "lr must be a number, got adamw=x"),
        ("compare vit-digits --lr adam=1", "optimizer in lr must be .* got adam; .*"),
        ("train vit-digits --lr 0", "lr must be positive and finite, got 0.0"),
        (
            "train vit-digits --set foo=1",
            "field in set must be one of steps, .* got foo",
        ),
        ("train vit-digits --set steps=1 steps=2", "set must be given as name=value"),
        ("train vit-digits --set batch_size=9999", "batch_size must be at most 1198"),
        ("train vit-digits --threads 0", "threads must be at least 1, got 0"),
        ("gsnr vit-digits --every 0", "every must be at least 1, got 0"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    command: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    pattern = sentence.replace("?", r"\?").replace("^", r"\^")
    assert re.fullmatch(f"saiopt: {pattern}.*\n", output.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ConnectionError])
@pytest.mark.parametrize(
    "command",
    [
        "train vit-digits --steps 2",
        "compare vit-digits --steps 2",
        "gsnr vit-digits --steps 2",
        "sweep vit-digits --steps 2 --optimizers sgd",
        "lr vit-digits",
    ],
)
def test_an_error_within_training_is_not_taken_for_bad_input(
    command: str,
    kind: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise kind("from within a library")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("saiopt.lab.tasks.classifier.Classifier.loss", fail)
    with pytest.raises(kind, match="from within a library"):
        main([*command.split(), *TINY])


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_an_error_within_pretraining_is_not_taken_for_bad_input(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise kind("from within a library")

    monkeypatch.setenv("SAIOPT_CACHE", str(tmp_path))
    task = "saiopt.lab.tasks.byte_language_model.ByteLanguageModel"
    monkeypatch.setattr(f"{task}.loss", fail)
    with pytest.raises(RuntimeError, match="pre-training must") as raised:
        main(["train", "lora-pydoc", "--runs-dir", str(tmp_path)])
    assert isinstance(raised.value.__cause__, kind)


def test_a_runs_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "runs"
    assert main([*COMPARE, "--runs-dir", str(folder)]) == 2
    expected = f"runs_dir must be a folder that can be written, got {folder}"
    assert capsys.readouterr().err == f"saiopt: {expected}\n"


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("numba", "numba"),
        ("datasets", "datasets"),
        ("PIL", "pillow"),
        ("sklearn", "scikit-learn"),
        ("lion_pytorch", "lion-pytorch"),
        ("matplotlib", "matplotlib"),
    ],
)
def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    module: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["recipes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saiopt: ")
    assert "pip install 'saiopt[lab,plot]'" in error
    assert f"(missing: {package})" in error


def test_a_package_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ImportError("no symbol\nin it", name="scipy.special")

    monkeypatch.setattr("saiopt.cli.parsing.parse", lambda _: broken)
    assert main(["recipes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saiopt: this command needs the package scipy in working")
    assert error.endswith("(no symbol)\n")


def test_an_import_error_of_our_own_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise ImportError("cannot import", name="saiopt.lab")

    monkeypatch.setattr("saiopt.cli.parsing.parse", lambda _: broken)
    with pytest.raises(ImportError):
        main(["recipes"])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_during_a_sweep_is_answered_in_a_sentence(
    workers: str, tmp_path: Path
) -> None:
    # Every process of the command, spawned ones too, reads this at its start.
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "os.fsync = full\n"
    )
    runs = ["--runs-dir", str(tmp_path / "runs"), "--workers", workers]
    sweep = ["sweep", "vit-digits", *TINY, "--steps", "2", "--optimizers", "sgd"]
    done = subprocess.run(
        [sys.executable, "-m", "saiopt", *sweep, *runs],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert re.fullmatch(r"saiopt: the disk must have room .* device\)\n", done.stderr)


def test_recipes_lists_every_recipe_with_its_learning_rates(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    for word in ("gpt-stdlib", "vit-digits", "sgdsai", "adamw", "sgdm-decoupled"):
        assert word in text


def test_help_loads_no_model_library() -> None:
    code = (
        "import sys; from saiopt.cli import main\n"
        "try: main(['recipes', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'transformers', 'sklearn', 'scipy', 'matplotlib'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "recipes" in done.stdout


def test_json_is_all_that_json_prints(
    reference: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*COMPARE, *TWO, "--runs-dir", str(tmp_path), "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["optimizer"] for row in first["rows"]] == ["sgdsai", "adamw"]
    for run in first["runs"]:
        assert run["metrics"] == reference[run["folder"]]["metrics"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == first
    assert "started" not in output.err


def test_train_and_gsnr_print_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*TINY, "--steps", "5", "--runs-dir", str(tmp_path), "--json"]
    assert main(["train", "vit-digits", *options, "--optimizer", "sgd"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    assert main(["gsnr", "vit-digits", *options, "--every", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["step"] for row in rows} == {0, 2, 4}


def test_a_damaged_run_folder_is_named_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "vit-digits",
        *TINY,
        "--steps",
        "2",
        "--runs-dir",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    [result] = tmp_path.glob("*/result.json")
    result.write_text("{")
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(result) in error
    assert result.read_text() == "{"


def test_a_killed_comparison_goes_on_to_the_same_numbers(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    arguments = [*COMPARE, *TWO, "--runs-dir", str(tmp_path)]
    process = start(arguments)
    wait_for(lambda: list(tmp_path.glob("vit-*-adamw-*/checkpoint.pt")), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(metrics(tmp_path)) == 1
    process = start(arguments)
    output, error = process.communicate()
    assert process.returncode == 0, error
    assert "finished before" in output
    assert "adamw seed 0: goes on from step" in output
    assert metrics(tmp_path) == reference


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "told to end")],
)
def test_who_stops_a_command_is_told_how_to_go_on(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    process = start([*COMPARE, "--runs-dir", str(tmp_path)])
    wait_for(lambda: list(tmp_path.glob("vit-*/checkpoint.pt")), process)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == code
    assert error.startswith(f"saiopt: {word}; the same command")
    assert error.count("\n") == 1


def finish(
    arguments: list[str], folder: Path, **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "saiopt", *arguments],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


@pytest.mark.parametrize(
    ("encoding", "sign"),
    [("ascii", b"+-"), ("latin-1", b"\xb1"), ("utf-8", b"\xc2\xb1")],
)
def test_output_that_is_not_utf_8_has_the_nearest_characters(
    encoding: str, sign: bytes, tmp_path: Path
) -> None:
    run = [*COMPARE, "--steps", "2", "--optimizers", "sgd", "--seeds", "0", "1"]
    done = finish(run, tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert sign in done.stdout


@pytest.mark.parametrize("arguments", [["memory", "gpt2"], ["gsnr", "--help"]])
def test_a_posix_locale_prints_everything(arguments: list[str], tmp_path: Path) -> None:
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = finish(arguments, tmp_path, **posix)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_run_whose_output_nobody_reads_ends_without_a_traceback(
    tmp_path: Path,
) -> None:
    shell = f"{sys.executable} -m saiopt {' '.join(COMPARE)} | head -n 1"
    shell += "; echo ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "141"
    assert done.stderr == ""
    assert all(json.loads(p.read_text()) for p in tmp_path.glob("runs/*/*.json"))


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m saiopt {' '.join(COMPARE)} --steps 2 >&-"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("runs/compare-*/comparison.json"))


@pytest.mark.parametrize("command", ["train", "compare", "gsnr"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_diverged_run_has_a_code_of_its_own(
    command: str, form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lr = "sgd=1e30" if command == "compare" else "1e30"
    chosen = ["--optimizers" if command == "compare" else "--optimizer", "sgd"]
    options = [*TINY, "--steps", "3", "--lr", lr, *chosen, *form]
    assert main([command, "vit-digits", *options, "--runs-dir", str(tmp_path)]) == 3
    output = capsys.readouterr()
    assert output.err.endswith("saiopt: 1 of 1 runs diverged: sgd seed 0\n")
    if form:
        assert json.loads(output.out)


def test_a_sweep_may_hold_cells_that_diverge(tmp_path: Path) -> None:
    options = [*TINY, "--steps", "3", "--optimizers", "sgd", "--lrs", "0.1", "1e30"]
    assert main(["sweep", "vit-digits", *options, "--runs-dir", str(tmp_path)]) == 0


def test_an_interruption_before_torch_is_there_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = finish(COMPARE, tmp_path, PYTHONPATH=path)
    assert done.returncode == 130
    assert done.stderr.startswith(b"saiopt: interrupted; the same command")
    assert done.stderr.count(b"\n") == 1


def test_an_interruption_while_workers_start_gets_one_sentence(tmp_path: Path) -> None:
    command = ["sweep", "vit-digits", *TINY, "--workers", "2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "saiopt", *command, "--runs-dir", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A terminal tells all processes of the group.
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: (tmp_path / ".sweeps").exists(), process)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.startswith("saiopt: interrupted")
    assert error.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"saiopt {version('saiopt')}\n"


def test_a_recipe_is_told_with_its_fields_data_and_rates(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["recipes", "gpt2-openwebtext"]) == 0
    text = capsys.readouterr().out
    for word in ("18 GB", "micro_batches", "task.tokenizer", "adamw\N{NO-BREAK SPACE}"):
        assert word in text
    assert main(["recipes", "vit-digits", "--json"]) == 0
    [recipe] = json.loads(capsys.readouterr().out)
    assert recipe["fields"]["task.hidden_size"] == 64
    assert recipe["lrs"]["adamw"] == 5e-4
