import math

import pytest
import torch

from saiopt.lab.data.source_text import SourceText
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.task import Task
from saiopt.lab.tasks.byte_language_model import ByteLanguageModel


def text(size: int) -> bytes:
    return bytes(i * i % 251 for i in range(size))


@pytest.fixture(params=["bytes", "digits"])
def task(request: pytest.FixtureRequest, tiny: Recipe) -> Task:
    return tiny.task.load() if request.param == "digits" else byte_task()


def byte_task() -> ByteLanguageModel:
    config = override(
        get_recipe("gpt-stdlib"),
        {
            "task.n_embd": "16",
            "task.n_layer": "1",
            "task.n_head": "2",
            "task.context": "8",
            "task.held_out_examples": "5",
        },
    ).task
    return config.task_on(SourceText(text(1000), text(400), "f"))


def test_a_batch_is_a_pure_function_of_seed_and_step(task: Task) -> None:
    torch.manual_seed(0)
    first = task.batch(1, 5, 4)
    torch.manual_seed(1)
    task.batch(1, 6, 4)
    for name, tensor in task.batch(1, 5, 4).items():
        assert torch.equal(tensor, first[name])
    for other in (task.batch(1, 6, 4), task.batch(2, 5, 4)):
        assert any(not torch.equal(other[name], first[name]) for name in first)


def test_the_seed_decides_the_initial_weights(task: Task) -> None:
    first, second, third = (task.build_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_an_untrained_model_guesses(task: Task) -> None:
    model = task.build_model(0).eval()
    classes = 10 if "accuracy" in task.evaluate(model) else 256
    loss = task.evaluate(model)["loss"]
    assert loss == pytest.approx(math.log(classes), rel=0.1)
    assert task.loss(model, task.batch(0, 0, 16)).item() == pytest.approx(loss, rel=0.2)


def test_the_model_can_be_built_without_memory(task: Task) -> None:
    with torch.device("meta"):
        model = task.build_model(0)
    assert all(p.device.type == "meta" for p in model.parameters())


def test_windows_of_bytes_come_from_the_training_text() -> None:
    task = byte_task()
    windows = task.batch(0, 0, 6)["bytes"]
    assert windows.shape == (6, 9)
    assert all(bytes(window.tolist()) in text(1000) for window in windows)


def test_an_epoch_shows_every_training_image_once(tiny: Recipe) -> None:
    task = tiny.task.load()
    epoch = torch.cat([task.batch(0, step, 1)["images"] for step in range(1198)])
    pixels = {image.numpy().tobytes() for image in epoch}
    again = torch.cat([task.batch(0, 1198 + step, 1)["images"] for step in range(1198)])
    assert pixels == {image.numpy().tobytes() for image in again}
    assert not torch.equal(epoch, again)


def test_too_large_a_batch_is_refused(tiny: Recipe) -> None:
    with pytest.raises(ValueError, match="batch_size must be at most 1198, got 1199"):
        tiny.task.load().batch(0, 0, 1199)


def test_too_many_held_out_examples_are_refused() -> None:
    recipe = override(get_recipe("gpt-stdlib"), {"task.held_out_examples": "99"})
    with pytest.raises(ValueError, match="must be between 1 and 3, got 99"):
        recipe.task.task_on(SourceText(text(1000), text(400), "f"))
