"""Blocks that wait for a usable gradient cost little, and begin when they get one."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from saiopt import SGDSaI
from saiopt.optimizer import calibration

NUM_WAITING = 100
USELESS = {"zero": 0.0, "not a number": math.nan, "infinite": -math.inf}
EVERY_USELESS = pytest.mark.parametrize("value", USELESS.values(), ids=USELESS)


class Operations(TorchDispatchMode):
    """Counts the operations that run inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def make(num_waiting, value, num_running=1, **options):
    num_blocks = num_waiting + num_running
    params = [nn.Parameter(torch.randn(16, 16)) for _ in range(num_blocks)]
    for i, param in enumerate(params):
        waits = i < num_waiting
        param.grad = torch.full_like(param, value) if waits else torch.randn(16, 16)
    optimizer = SGDSaI(params, **options)
    optimizer.step()
    optimizer.step()
    return params, optimizer


@EVERY_USELESS
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_blocks_that_wait_take_no_more_operations_than_those_that_run(
    value, weight_decay, every_execution
):
    counts = []
    for num_waiting in (1, NUM_WAITING):
        options = {"weight_decay": weight_decay, **every_execution}
        num_running = NUM_WAITING + 1 - num_waiting
        _, optimizer = make(num_waiting, value, num_running, **options)
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[1] <= counts[0]


@EVERY_USELESS
def test_blocks_that_wait_are_not_measured(value, every_execution, monkeypatch):
    measured = []

    def measure(params, entries=None):
        measured.append(len(params))
        return real(params, entries)

    real = calibration.measure_blocks
    monkeypatch.setattr(calibration, "measure_blocks", measure)
    params, optimizer = make(NUM_WAITING, value, **every_execution)
    assert measured == [NUM_WAITING + 1]
    for param in params[:3]:
        param.grad = torch.randn(16, 16)
    optimizer.step()
    assert measured[1:] == [3]


# Hardly usable, and hardly not: the smallest and largest numbers of each dtype.
EDGES = {
    torch.float32: (1e-45, 1e-30, 1e-20, 3e38),
    torch.bfloat16: (1e-40, 1e-30, 1e-20, 3e38),
    torch.float16: (6e-8, 1e-3, 6e4),
    torch.float64: (5e-324, 1e-300, 1e-100, 1e150, 1e300),
}
GRADIENTS = {
    "all entries": lambda edge: torch.full((8, 8), edge, dtype=torch.float64),
    "both signs": lambda edge: edge * (-1.0) ** torch.arange(64.0).view(8, 8).double(),
    "one entry": lambda edge: edge * torch.eye(64).double()[0].view(8, 8),
    "the last is infinite": lambda edge: (
        torch.full((8, 8), edge, dtype=torch.float64) * infinite()
    ),
}


def infinite():
    last = torch.ones(8, 8, dtype=torch.float64)
    last[-1, -1] = math.inf
    return last


@EVERY_USELESS
@pytest.mark.parametrize("grad", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize(
    ("dtype", "edge"), [(d, e) for d, edges in EDGES.items() for e in edges]
)
def test_a_block_that_waited_begins_where_a_new_one_would(value, grad, dtype, edge):
    grad = grad(edge).to(dtype)
    new, late = (nn.Parameter(torch.ones(8, 8, dtype=dtype)) for _ in range(2))
    first, second = (SGDSaI([p], weight_decay=0.0, eps=0.0) for p in (new, late))
    late.grad = torch.full_like(late, value)
    second.step()
    second.step()
    new.grad, late.grad = grad.clone(), grad.clone()
    first.step()
    second.step()
    assert torch.equal(first.state[new]["scale"], second.state[late]["scale"])
    assert torch.equal(
        first.state[new]["momentum_buffer"], second.state[late]["momentum_buffer"]
    )


def test_blocks_of_several_dtypes_wait_together(every_execution):
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    params = [nn.Parameter(torch.ones(8, 8, dtype=dtype)) for dtype in dtypes]
    optimizer = SGDSaI(params, **every_execution)
    for begun in range(len(params) + 1):
        for i, param in enumerate(params):
            param.grad = torch.randn(8, 8).to(param.dtype) * (i < begun)
        optimizer.step()
        assert [float(optimizer.state[p]["scale"]) > 0 for p in params] == [
            i < begun for i in range(len(params))
        ]
