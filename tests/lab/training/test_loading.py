"""Batches made ahead are those that would have been made in their turn."""

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from saiopt.cli import main
from saiopt.lab.recipe import Recipe
from saiopt.lab.training.loading import made_ahead
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.run import Run

CPU = torch.device("cpu")


def numbered(step: int) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(step)}


@pytest.mark.parametrize("threads", [0, 1, 3, 20])
@pytest.mark.parametrize("first", [0, 7])
def test_batches_come_in_their_order(threads: int, first: int) -> None:
    with made_ahead(numbered, threads, 10) as batches:
        found = [int(batches(step)["step"]) for step in range(first, 10)]
    assert found == list(range(first, 10))


def test_the_next_batches_are_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def make(step: int) -> dict[str, torch.Tensor]:
        made[step].set()
        return numbered(step)

    with made_ahead(make, 2, 4) as batches:
        batches(0)
        assert made[1].wait(60)
        assert made[2].wait(60)
        assert not made[3].is_set(), "no more are held than there are threads"


def test_what_a_thread_raises_is_raised() -> None:
    def make(step: int) -> dict[str, torch.Tensor]:
        if step == 2:
            raise OSError("a damaged image")
        return numbered(step)

    with made_ahead(make, 2, 10) as batches:
        batches(0)
        batches(1)
        with pytest.raises(OSError, match="a damaged image"):
            batches(2)


def carry(run: Run, folder: Path, stop_at: int | None = None) -> Outcome:
    def observe(progress: Progress) -> None:
        if progress.step == stop_at:
            raise KeyboardInterrupt

    return carry_out(run, run.recipe.task.load(), folder, CPU, observe)


def test_a_run_is_the_same_run_however_its_batches_are_made(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = Run(tiny, "sgdsai", 0.1, 0)
    ahead = Run(dataclasses.replace(tiny, loaders=3), "sgdsai", 0.1, 0)
    assert run.describe() == ahead.describe()
    expected = carry(run, tmp_path / "in turn")
    with pytest.raises(KeyboardInterrupt):
        carry(ahead, tmp_path / "ahead", stop_at=6)
    found = carry(ahead, tmp_path / "ahead")
    assert found.folder == expected.folder
    assert found.losses == expected.losses
    assert found.curve == expected.curve
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_loaders_are_refused_where_they_could_be_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(__file__).parents[3] / "examples" / "own.py"
    command = ["train", f"{own}:recipe", "--runs-dir", str(tmp_path), "--set"]
    assert main([*command, "loaders=2"]) == 2
    assert "loaders must be 0 for a recipe of one's own" in capsys.readouterr().err
    assert main([*command, "loaders=-1"]) == 2
    assert "loaders must be at least 0, got -1" in capsys.readouterr().err


def test_only_the_recipe_of_large_images_loads_ahead() -> None:
    from saiopt.lab.recipes import RECIPES

    found = {name: build().loaders for name, build in RECIPES.items()}
    assert {name: n for name, n in found.items() if n} == {"vit-s16-imagenet": 8}
