"""A model, data and an optimizer of one's own: docs/lab.md says how to train them."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from saiopt import lab

WIDTH = 64


def model():
    return nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def rings():
    points = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, (points.norm(dim=1, keepdim=True) > 1.2).float())


def accuracy(outputs, targets):
    return ((outputs > 0) == targets).float().mean()


loss = nn.functional.binary_cross_entropy_with_logits
recipe = lab.own_recipe(model, rings, loss, accuracy, steps=300, batch_size=50)


def my_optimizer(params, lr, momentum=0.9):
    return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=True)
