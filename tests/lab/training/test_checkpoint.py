import re
from pathlib import Path
from typing import Any

import lab_ranks
import pytest
import torch
from torch import nn

from saiopt import SGDSaI
from saiopt.lab.training import checkpoint
from saiopt.lab.training.checkpoint import Position
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run_folder import RunFolderError

POSITION = Position(step=3, log_bytes=120, elapsed_seconds=1.5)


def build(width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(width, 2)
    return model, SGDSaI(model.parameters(), lr=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()


def test_a_restored_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model, optimizer = build()
    train(model, optimizer, 3)
    checkpoint.save(path, model, optimizer, POSITION)
    train(model, optimizer, 3)
    other_model, other_optimizer = build()
    assert checkpoint.load(path, other_model, other_optimizer) == POSITION
    train(other_model, other_optimizer, 3)
    assert torch.equal(model.weight, other_model.weight)
    assert torch.equal(model.bias, other_model.bias)


def draw_after(path: Path, ranks: Ranks) -> list[float]:
    checkpoint.load(path, *build(), ranks)
    return torch.rand(3).tolist()


def test_every_rank_goes_on_with_its_own_random_numbers(
    tmp_path: Path, workers: Any
) -> None:
    path = tmp_path / "checkpoint.pt"
    expected = workers.run(2, lab_ranks.draw_after_saving, path)
    assert expected[0] != expected[1]
    assert [draw_after(path, Ranks(r, 2, "ddp")) for r in range(2)] == expected
    assert draw_after(path, ALONE) == expected[0]


def test_ranks_that_are_new_draw_what_no_other_draws(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, *build(), POSITION)
    ranks = [Ranks(rank, 3, "ddp") for rank in range(3)]
    first, again = ([draw_after(path, r) for r in ranks] for _ in range(2))
    assert first == again
    assert len({tuple(draws) for draws in first}) == 3


def test_a_checkpoint_of_an_older_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, *build(), POSITION)
    expected = torch.rand(3).tolist()
    content = torch.load(path)
    [states] = content.pop("generators")
    torch.save({**content, "rng": states["cpu"]}, path)
    assert draw_after(path, ALONE) == expected


@pytest.mark.gpu
def test_a_model_on_a_gpu_keeps_the_generator_of_that_gpu(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model = nn.Linear(4, 2).cuda()
    optimizer = SGDSaI(model.parameters())
    checkpoint.save(path, model, optimizer, POSITION)
    expected = torch.rand(3, device="cuda")
    checkpoint.load(path, model, optimizer)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, *build(), POSITION)
    damaged = path.read_bytes()[:kept]
    path.write_bytes(damaged)
    with pytest.raises(RunFolderError, match=f"damaged {path}"):
        checkpoint.load(path, *build())
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer"),
        ValueError("state_dict must fit the parameters"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_fails_beside_the_file_is_not_laid_to_it(
    error: Exception, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, *build(), POSITION)
    model, optimizer = build()

    def fail(*_: object) -> None:
        raise error

    optimizer.register_load_state_dict_pre_hook(fail)
    with pytest.raises(type(error), match=re.escape(str(error))):
        checkpoint.load(path, model, optimizer)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, *build(), POSITION)
    with pytest.raises(RunFolderError, match=f"damaged {path}"):
        checkpoint.load(path, *build(width=5))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(RunFolderError, match=f"damaged {path}"):
        checkpoint.load(path, *build())
