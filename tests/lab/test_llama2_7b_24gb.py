import dataclasses
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import load, write_tokenizer

from saiopt.bench.clock import peak_temporary_bytes
from saiopt.cli import main
from saiopt.lab.comparison.compare import prepare
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.task import Task
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.ranks import Ranks
from saiopt.lab.training.run import Run

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TINY = {
    "task.vocabulary": "300",
    "task.hidden_size": "64",
    "task.intermediate_size": "96",
    "task.num_layers": "2",
    "task.num_heads": "2",
    "task.context": "16",
    "task.held_out_examples": "2",
    "task.checkpoint": "random",
    "steps": "6",
    "eval_every": "3",
    "checkpoint_every": "2",
    "warmup_fraction": "0",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    rows = {"text": ["Aromi is an Indian place " * 300] * 4}
    (folder / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(folder / "data" / "train.parquet")
    write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def offline(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAIOPT_CACHE", str(files / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def settings(files: Path) -> dict[str, str]:
    places = {"data": files / "data", "tokenizer": files / "tokenizer"}
    return TINY | {f"task.{name}": str(path) for name, path in places.items()}


@pytest.fixture
def recipe(settings: dict[str, str]) -> Recipe:
    return override(get_recipe("llama2-7b-24gb"), settings)


class KeptModel:
    """A task that shows the model that is trained on it."""

    def __init__(self, task: Task) -> None:
        self._task, self.fingerprint = task, task.fingerprint
        self.batch, self.loss, self.evaluate = task.batch, task.loss, task.evaluate

    def build_model(self, seed: int) -> torch.nn.Module:
        self.model = self._task.build_model(seed)
        return self.model


def carry(recipe: Recipe, runs_dir: Path, stop: int = 0) -> tuple[Outcome, Any]:
    def observe(progress: Progress) -> None:
        if progress.step == stop and progress.loss is not None:
            raise KeyboardInterrupt

    run, task = Run(recipe, recipe.optimizer, 0.02, 0), KeptModel(recipe.task.load())
    outcome = carry_out(run, task, runs_dir, torch.device("cpu"), observe)
    return outcome, task.model.state_dict()


def losses(outcome: Outcome) -> list[Any]:
    return [line.get("loss", line.get("metrics")) for line in outcome.log]


def assert_same(first: tuple[Outcome, Any], second: tuple[Outcome, Any]) -> None:
    assert losses(first[0]) == losses(second[0])
    assert first[0].result["metrics"] == second[0].result["metrics"]
    assert all(torch.equal(v, second[1][name]) for name, v in first[1].items())


def test_the_model_has_the_published_parameters_in_bfloat16(files: Path) -> None:
    task = load(
        "llama2-7b-24gb",
        data=files / "data",
        tokenizer=files / "tokenizer",
        checkpoint="random",
        held_out_examples=1,
        context=512,
    )
    with torch.device("meta"):
        params = list(task.build_model(0).parameters())
    assert sum(p.numel() for p in params) == 6_738_415_616
    assert {p.dtype for p in params} == {torch.bfloat16}


def test_building_holds_no_copy_in_float32(recipe: Recipe) -> None:
    model = recipe.task.build()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = peak_temporary_bytes(recipe.task.build, torch.device("cpu"))
    assert weights <= peak < 1.1 * weights


def test_release_and_checkpointing_change_no_bit(
    recipe: Recipe, tmp_path: Path
) -> None:
    released = carry(recipe, tmp_path)
    plain = override(
        recipe, {"gradient_release": "false", "task.activation_checkpointing": "false"}
    )
    assert_same(released, carry(plain, tmp_path))
    start = recipe.task.load().build_model(0).state_dict()
    assert not any(torch.equal(v, start[name]) for name, v in released[1].items())


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(
    recipe: Recipe, tmp_path: Path
) -> None:
    whole = carry(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        carry(recipe, tmp_path / "stopped", stop=4)
    assert_same(carry(recipe, tmp_path / "stopped"), whole)


def test_the_log_leaves_out_what_release_does_not_have(
    recipe: Recipe, tmp_path: Path
) -> None:
    outcome, _ = carry(recipe, tmp_path)
    lines = [line for line in outcome.log if "loss" in line]
    assert [set(line) for line in lines] == [{"step", "lr", "loss"}] * 6
    assert outcome.result["step_seconds"] is None


def test_the_model_is_gone_before_the_next_run_builds_its_own(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, params = recipe.task.load(), []
    build = task.build_model

    def remember(seed: int) -> torch.nn.Module:
        model = build(seed)
        params.extend(weakref.ref(p) for p in model.parameters())
        return model

    monkeypatch.setattr(task, "build_model", remember)
    gc.collect()
    gc.disable()
    try:
        run = Run(recipe, recipe.optimizer, 0.02, 0)
        carry_out(run, task, tmp_path, torch.device("cpu"), lambda _: None)
        assert len(params) == 21
        assert not any(param() is not None for param in params)
    finally:
        gc.enable()


def test_the_commands_cope_without_step_times(
    settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("sgdsai-int8", "sgdsai-int4")
    arguments = ["compare", "llama2-7b-24gb", "--runs-dir", str(tmp_path)]
    arguments += ["--optimizers", *names, "--lr", *(f"{name}=0.02" for name in names)]
    arguments += ["--steps", "2", "--set"]
    arguments += [f"{k}={v}" for k, v in settings.items() if k != "steps"]
    assert main(arguments) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "0.02" in line]
    assert len(rows) == 2
    page = str(tmp_path / "page.html")
    assert main(["report", "--runs-dir", str(tmp_path), "--output", page]) == 0
    [comparison] = tmp_path.glob("compare-*/comparison.json")
    found = json.loads(comparison.read_text())["rows"]
    assert [row["step_seconds"] for row in found] == [None, None]
    int8, int4 = (row["state_bytes_per_parameter"] for row in found)
    assert int4 < int8 < 2


def test_a_checkpoint_is_read_in_bfloat16(
    files: Path, recipe: Recipe, tmp_path: Path
) -> None:
    start = recipe.task.load().build_model(7).float()
    start.save_pretrained(tmp_path)
    task = dataclasses.replace(recipe.task, checkpoint=str(tmp_path))
    model = task.load().build_model(0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight.float(), start.state_dict()[name])
    other = dataclasses.replace(task, num_layers=3)
    with pytest.raises(
        ValueError, match=r"task\.num_layers must be that of .*2, got 3"
    ):
        other.load()


def test_ddp_is_refused_since_it_saves_nothing(recipe: Recipe) -> None:
    run = Run(recipe, "sgdsai-int8", 0.02, 0)
    with pytest.raises(ValueError, match="strategy must be fsdp2 with gradient_rel"):
        prepare([run], Ranks(0, 2, "ddp"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task.dtype": "float16"}, "task.dtype must be one of bfloat16, .* float16"),
        ({"task.num_heads": "3"}, "task.hidden_size must be a multiple of twice .* 3"),
        ({"task.context": "0"}, "sizes must be at least 1, got .*"),
    ],
)
def test_a_bad_size_is_refused(
    recipe: Recipe, changes: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        override(recipe, changes)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(recipe: Recipe) -> None:
    small = override(recipe, {"task.vocabulary": "20"})
    with pytest.raises(
        ValueError, match=r"task\.tokenizer must have at most 20 tokens"
    ):
        small.task.load()


def test_without_a_learning_rate_the_command_asks_for_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "llama2-7b-24gb", "--runs-dir", str(tmp_path)]) == 2
    assert "lr must be given for sgdsai-int8" in capsys.readouterr().err
