import pytest

from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe

TINY = {
    "task.hidden_size": "16",
    "task.num_layers": "1",
    "task.num_heads": "2",
    "task.patch_size": "4",
    "batch_size": "16",
    "steps": "12",
    "eval_every": "5",
    "checkpoint_every": "4",
}


@pytest.fixture
def tiny() -> Recipe:
    return override(get_recipe("vit-digits"), TINY)
