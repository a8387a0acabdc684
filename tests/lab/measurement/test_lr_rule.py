import dataclasses
import math

import pytest
import torch

from saiopt.lab.measurement.lr_rule import known_lr_of, propose
from saiopt.lab.recipes import get_recipe

CPU = torch.device("cpu")
RECIPE = get_recipe("resnet-digits")


@pytest.fixture(scope="module")
def task():
    return RECIPE.task.load()


def test_an_optimizer_is_proposed_its_own_learning_rate(task):
    found = propose(RECIPE, task, "adamw", "adamw", 3e-3, CPU, gradients=3)
    assert found.lr == 3e-3


def test_first_updates_are_as_large_as_the_formula_says(task):
    found = propose(RECIPE, task, "sgdsai", "sgdm-decoupled", 0.5, CPU, gradients=1)
    model = task.build_model(0).train()
    task.loss(model, task.batch(0, 0, RECIPE.batch_size)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip_norm)
    grads = [p.grad.double() for p in model.parameters()]
    scaled = [g * g.norm() / (g.std() + 1e-8) for g in grads]
    ratio = math.sqrt(
        sum(float(g.square().sum()) for g in grads)
        / sum(float(g.square().sum()) for g in scaled)
    )
    assert found.lr == pytest.approx(0.5 * ratio, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"known_lr": 0.0}, "known_lr must be positive and finite, got 0.0"),
        ({"known_lr": math.inf}, "known_lr must be positive and finite, got inf"),
        ({"gradients": 0}, "gradients must be at least 1, got 0"),
        ({"known": "nosuch"}, "optimizer must be one of"),
        ({"known": "prodigy"}, "optimizer and known must not be prodigy"),
    ],
)
def test_bad_arguments_are_refused(task, arguments, sentence):
    given = {"known": "adamw", "known_lr": 1e-3, "gradients": 1} | arguments
    with pytest.raises(ValueError, match=sentence):
        propose(RECIPE, task, "sgdsai", device=CPU, **given)


def test_a_known_learning_rate_is_the_recipes_or_adamws_usual_one():
    assert known_lr_of(RECIPE, "adamw") == RECIPE.lrs["adamw"]
    assert known_lr_of(dataclasses.replace(RECIPE, lrs={}), "adamw") == 1e-3
    with pytest.raises(ValueError, match="known_lr must be given for lion"):
        known_lr_of(RECIPE, "lion")
