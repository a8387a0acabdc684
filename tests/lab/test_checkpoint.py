from pathlib import Path

import pytest
import torch
from torch import nn

from saiopt import SGDSaI
from saiopt.lab import checkpoint
from saiopt.lab.checkpoint import Position
from saiopt.lab.run_folder import RunFolderError

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


@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, *build(), POSITION)
    damaged = path.read_bytes()[:kept]
    path.write_bytes(damaged)
    with pytest.raises(RunFolderError, match=f"damaged {path}"):
        checkpoint.load(path, *build())
    assert path.read_bytes() == damaged


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
