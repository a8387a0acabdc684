import pytest
import torch
from models import TinyTransformer
from torch import nn

from saiopt import decay_groups


def test_matrices_decay_and_vectors_do_not():
    model = TinyTransformer()
    decaying, others = decay_groups(model, 0.1)
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decaying["params"])
    assert all(p.dim() < 2 for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(
        list(model.parameters())
    )


def test_frozen_parameters_are_left_out_and_shared_ones_appear_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)
    groups = decay_groups(model, 0.1)
    assert [len(g["params"]) for g in groups] == [1]


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="model must have a parameter"):
        decay_groups(nn.ReLU(), 0.1)


def test_the_groups_train():
    model = TinyTransformer()
    torch.optim.SGD(decay_groups(model, 0.1), lr=0.1)
