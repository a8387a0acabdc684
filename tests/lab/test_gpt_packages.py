import re
from pathlib import Path

import pytest
import torch

from saiopt.cli import main
from saiopt.lab.data.source_text import SourceText
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe, small_recipes
from saiopt.lab.recipes.gpt_packages import PACKAGES
from saiopt.lab.training.outcome import carry_out
from saiopt.lab.training.run import Run

NAMES = ("gpt-packages-3m", "gpt-packages-10m")
TEXT = bytes(i * i % 251 for i in range(40_000))
TINY = {
    "task.n_embd": "16",
    "task.n_layer": "1",
    "task.n_head": "2",
    "task.context": "8",
    "task.held_out_examples": "4",
    "steps": "3",
    "eval_every": "3",
}


def on_text(recipe: Recipe, fingerprint: str = "f"):
    return recipe.task.task_on(SourceText(TEXT, TEXT, fingerprint))


@pytest.mark.parametrize(("name", "size"), [(NAMES[0], 3.3e6), (NAMES[1], 10.0e6)])
def test_a_size_has_the_parameters_that_its_description_says(
    name: str, size: float
) -> None:
    recipe = get_recipe(name)
    with torch.device("meta"):
        model = on_text(recipe).build_model(0)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(size, rel=0.005)
    assert f"({size / 1e6:.2g} M)" in recipe.description


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_of_a_size_learns(name: str, tmp_path: Path) -> None:
    recipe = override(get_recipe(name), TINY)
    run = Run(recipe, recipe.optimizer, 0.05, 0)
    outcome = carry_out(run, on_text(recipe), tmp_path, torch.device("cpu"), print)
    (_, first), (step, last) = outcome.curve
    assert step == 3
    assert last < first


def test_runs_on_another_text_have_another_name(tmp_path: Path) -> None:
    recipe = override(get_recipe(NAMES[0]), TINY)
    run = Run(recipe, "adamw", 1e-3, 0)
    for fingerprint in ("one", "another"):
        task = on_text(recipe, fingerprint)
        carry_out(run, task, tmp_path, torch.device("cpu"), print)
    assert len(list(tmp_path.iterdir())) == 2


def test_hours_are_no_minutes() -> None:
    assert not set(NAMES) & set(small_recipes())


def test_its_packages_are_pinned() -> None:
    text = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert set(re.findall(r"^(\S+)==", text, re.MULTILINE)) >= PACKAGES.keys()


def test_a_missing_package_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PACKAGES, "nowhere", "nowhere_to_be_found")
    assert main(["train", NAMES[0], "--runs-dir", str(tmp_path)]) == 2
    assert "source files of the package nowhere, install" in capsys.readouterr().err
