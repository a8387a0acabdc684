import lab_ranks
import pytest
import torch
from masked import MaskedTask
from torch import nn

from saiopt.lab.recipe import Recipe
from saiopt.lab.task import Task, Weighted
from saiopt.lab.tasks.described_meaning import DescribedMeaning
from saiopt.lab.training.accumulation import accumulate

CPU = torch.device("cpu")


def gradient(task: Task, size: int, count: int) -> tuple[torch.Tensor, float]:
    model = task.build_model(0)
    loss = accumulate(task, model, task.batch(0, 0, size), count, CPU)
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads), loss.item()


@pytest.mark.parametrize("kept", [(1, 6, 2, 3), (0, 0, 2, 3), (0, 1, 0, 0)])
@pytest.mark.parametrize("count", [2, 4])
def test_parts_with_unequal_numbers_of_targets_add_up_to_the_whole(
    kept: tuple[int, ...], count: int
) -> None:
    whole, parts = (gradient(MaskedTask(kept), 4, n) for n in (1, count))
    torch.testing.assert_close(parts[0], whole[0])
    assert parts[1] == pytest.approx(whole[1])


def test_a_batch_without_targets_moves_nothing() -> None:
    grads, loss = gradient(MaskedTask((0, 0)), 2, 2)
    assert loss == 0
    assert not grads.any()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kept", [(1, 6, 2, 3), (0, 0, 2, 3)])
def test_ranks_with_unequal_numbers_of_targets_add_up_to_the_whole(
    workers, strategy, kept
) -> None:
    whole, loss = gradient(MaskedTask(kept), 4, 1)
    for found in workers.run(2, lab_ranks.accumulated, strategy, kept):
        torch.testing.assert_close(torch.tensor(found[0]), whole)
        assert found[1] == pytest.approx(loss)


def test_parts_of_other_tasks_count_alike(tiny: Recipe) -> None:
    task = tiny.task.load()
    assert not isinstance(task, Weighted)
    grads, loss = gradient(task, 16, 4)
    model, losses = task.build_model(0), []
    batch = task.batch(0, 0, 16)
    for i in range(4):
        part = {name: tensor.chunk(4)[i] for name, tensor in batch.items()}
        losses.append(task.loss(model, part) / 4)
        losses[-1].backward()
    expected = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert torch.equal(grads, torch.cat(expected))
    assert loss == torch.stack(losses).sum().item()


class Letters:
    eos_token_id = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 50 + 1 for letter in text]}


class Rows(dict):
    _fingerprint = "rows"


def test_the_weight_of_sentences_is_the_number_of_their_tokens() -> None:
    rows = Rows(
        meaning_representation=["a", "b"], human_reference=["yes", "a longer one"]
    )
    sizes = {"context": 512, "rank": 1, "alpha": 1, "dropout": 0.0, "generated": 1}
    task = DescribedMeaning(nn.Identity, Letters(), rows, rows, **sizes)
    assert isinstance(task, Weighted)
    # Each with the space before it and the end after it.
    assert task.weight(task.batch(0, 0, 2)) == 5 + 14
