import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from saiopt.lab.comparison.compare import prepare
from saiopt.lab.data.digits import read_digits
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe, small_recipes
from saiopt.lab.task import Task
from saiopt.lab.tasks.frechet import DigitFeatures, frechet_distance
from saiopt.lab.training.outcome import carry_out
from saiopt.lab.training.ranks import Ranks
from saiopt.lab.training.run import Run

CPU = torch.device("cpu")
SHORT = {"steps": "4", "eval_every": "4", "checkpoint_every": "2", "batch_size": "8"}
SMALL = {
    "resnet-digits": {"task.width": "4"},
    "lora-pydoc": {"task.pretraining_steps": "2", "task.held_out_examples": "2"},
    "ddpm-digits": {
        "task.width": "8",
        "task.samples": "4",
        "task.sampling_steps": "2",
        "task.held_out_repeats": "1",
    },
    "lora-ddpm-digits": {
        "task.pretraining_steps": "2",
        "task.samples": "4",
        "task.held_out_repeats": "1",
    },
}


@pytest.fixture(scope="module")
def tasks(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple[Recipe, Task]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAIOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipes = {n: override(get_recipe(n), SHORT | s) for n, s in SMALL.items()}
        yield {name: (recipe, recipe.task.load()) for name, recipe in recipes.items()}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, "sgdsai") for name in SMALL),
        # Convolutions and adapters are hidden matrices too.
        ("ddpm-digits", "muon-factored"),
        ("resnet-digits", "muon-adamw"),
        ("ddpm-digits", "sgdsai-orthogonal"),
        ("lora-pydoc", "sgdsai-orthogonal"),
        # Gradients that nobody clears would add up, and be clipped, from the resume on.
        ("lora-pydoc", "sgdsai-frozen-a"),
        ("lora-ddpm-digits", "adamw-frozen-a"),
    ],
)
def test_a_stopped_run_of_any_recipe_ends_as_if_it_had_not_been(
    tasks: dict[str, tuple[Recipe, Task]], tmp_path: Path, name: str, optimizer: str
) -> None:
    recipe, task = tasks[name]
    run = Run(recipe, optimizer, 0.01, 0, gsnr_every=2)

    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) == 3:
            raise KeyboardInterrupt

    whole = carry_out(run, task, tmp_path / "whole", CPU, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        carry_out(run, task, tmp_path / "stopped", CPU, stop)
    again = carry_out(run, task, tmp_path / "stopped", CPU, lambda _: None)
    assert again.result["metrics"] == whole.result["metrics"]
    for key in ("gsnr", "grad_norm"):
        assert [line.get(key) for line in again.log] == [
            line.get(key) for line in whole.log
        ]


@pytest.mark.parametrize("name", ["lora-pydoc", "lora-ddpm-digits"])
def test_adapters_start_at_the_pretrained_model_and_only_they_train(
    tasks: dict[str, tuple[Recipe, Task]], name: str
) -> None:
    _, task = tasks[name]
    model = task.build_model(0)
    task.loss(model, task.batch(0, 0, 8)).backward()
    for parameter_name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in parameter_name)
        if "lora_A" in parameter_name:
            assert not p.grad.any()
        if "lora_B" in parameter_name:
            assert not p.any()
            assert p.grad.any()
    before = task.evaluate(model.eval())
    assert task.evaluate(task.build_model(1).eval()) == before


def test_adapters_whose_first_gradient_is_zero_train_all_the_same(
    tasks: dict[str, tuple[Recipe, Task]], tmp_path: Path
) -> None:
    recipe, task = tasks["lora-pydoc"]
    run = Run(recipe, "sgdsai", 0.01, 0, gsnr_every=1)
    log = carry_out(run, task, tmp_path, CPU, lambda _: None).log
    rows = [line["gsnr"] for line in log if "gsnr" in line]
    first, last = ([row for row in r if "lora_A" in row["block"]] for r in rows[::3])
    assert all(row["sparsity"] == 1 and row["gsnr"] is None for row in first)
    assert all(row["update"] == 0 for row in first)
    assert all(row["update"] > 0 and row["gsnr"] > 0 for row in last)


def test_pretraining_is_made_once_and_made_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAIOPT_CACHE", str(tmp_path))
    config = override(get_recipe("lora-ddpm-digits"), SMALL["lora-ddpm-digits"]).task
    first = config.load().fingerprint
    [path] = tmp_path.glob("*.pt")
    assert str(path) in capsys.readouterr().err
    assert config.load().fingerprint == first
    assert not capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-100])
    assert config.load().fingerprint == first
    assert "pre-training once" in capsys.readouterr().err


@pytest.mark.parametrize("made_by", ["code_hash", "version"])
def test_weights_that_other_code_has_pretrained_are_made_again(
    made_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAIOPT_CACHE", str(tmp_path))
    config = override(get_recipe("lora-pydoc"), SMALL["lora-pydoc"]).task
    config.load()
    monkeypatch.setattr(f"saiopt.lab.tasks.pretraining.{made_by}", lambda *_: "edited")
    config.load()
    assert len(list(tmp_path.glob("pretrained-*.pt"))) == 2


def test_pictures_of_generated_digits_are_in_the_run_folder(
    tasks: dict[str, tuple[Recipe, Task]], tmp_path: Path
) -> None:
    recipe, task = tasks["ddpm-digits"]
    outcome = carry_out(Run(recipe, "adamw", 0.01, 0), task, tmp_path, CPU, print)
    for name in ("samples.png", "real.png"):
        with Image.open(tmp_path / outcome.folder / name) as picture:
            assert picture.size == (8 * 72 + 8, 8 * 72 + 8)
            pixels = picture.convert("L").tobytes()
    assert sum(pixels) / len(pixels) > 128, "digits must be dark on a light ground"


def test_diffusion_learns_the_classes_it_is_given() -> None:
    digits = read_digits()
    kept = digits.only({8, 9})
    assert set(kept.labels.tolist()) == set(kept.held_out_labels.tolist()) == {8, 9}
    assert len(kept.labels) == int((digits.labels >= 8).sum())


def test_the_frechet_distance_has_its_closed_form() -> None:
    sample = torch.randn(2000, 3, dtype=torch.float64)
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-6)
    shifted = sample + torch.tensor([3.0, 0.0, 4.0])
    assert frechet_distance(sample, shifted) == pytest.approx(25, rel=1e-6)
    trace = sample.T.cov().trace().item()
    assert frechet_distance(sample, 3 * sample - 2 * sample.mean(0)) == pytest.approx(
        4 * trace, rel=1e-6
    )


def test_real_digits_are_nearer_to_each_other_than_to_noise() -> None:
    digits = read_digits()
    features = DigitFeatures(digits)
    real = features(digits.held_out_images)
    noise = features(torch.rand(599, 1, 8, 8) * 2 - 1)
    assert frechet_distance(features(digits.images), real) < 1
    assert frechet_distance(noise, real) > 10


def test_a_model_with_batch_norm_is_refused_on_several_ranks() -> None:
    run = Run(get_recipe("resnet-digits"), "sgdsai", 0.01, 0)
    with pytest.raises(ValueError, match=r"must be trained in one process.*got 2"):
        prepare([run], Ranks(0, 2, "ddp"))


@pytest.mark.parametrize("name", ["vit-digits", "ddpm-digits"])
def test_micro_batches_give_the_numbers_of_one_batch(
    tiny: Recipe, tasks: dict[str, tuple[Recipe, Task]], tmp_path: Path, name: str
) -> None:
    recipe = tiny if name == "vit-digits" else tasks[name][0]
    task = recipe.task.load()
    losses = []
    for count in (1, 4):
        split = dataclasses.replace(recipe, micro_batches=count)
        log = carry_out(Run(split, "adamw", 1e-3, 0), task, tmp_path, CPU, print).log
        losses.append([line["loss"] for line in log if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(list(tmp_path.iterdir())) == 2


def test_every_small_recipe_has_a_learning_rate_for_the_swept_optimizers() -> None:
    swept = {"sgdsai", "sgdsai-sqrt-numel", "adamw", "sgd", "sgdm-decoupled"}
    for name in small_recipes():
        assert get_recipe(name).lrs.keys() >= swept
