import pytest
import torch

from saiopt.bench.bandwidth import bandwidth
from saiopt.bench.clock import peak_temporary_bytes, seconds
from saiopt.bench.shapes import allocate, skeleton

CPU = torch.device("cpu")


def allocated(model):
    allocate(model, torch.float32, CPU)
    return list(model.parameters())


def test_the_peak_counts_what_is_alive_at_once():
    x = torch.ones(1000)

    def work():
        y = x + 1
        z = y + 1
        del y
        return (z + 1).sum()

    # z and z + 1 live together, as y and z did, and then the sum beside z + 1.
    assert 8000 <= peak_temporary_bytes(work, CPU) <= 8016


def test_work_in_place_has_no_peak():
    x = torch.ones(1000)
    assert peak_temporary_bytes(lambda: x.mul_(2.0), CPU) < 16


def test_measuring_the_bandwidth_leaves_the_parameters_alone():
    params = allocated(skeleton("tiny"))
    before = [p.detach().clone() for p in params]
    assert bandwidth(params, CPU) > 0
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_seconds_are_those_of_the_work(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr("saiopt.bench.clock.time.perf_counter", lambda: next(ticks))
    calls = []
    assert seconds(lambda: calls.append(1), CPU) == 2.5
    assert calls == [1]


def test_parameters_and_gradients_are_the_same_at_every_call():
    model = skeleton("tiny")
    first, second = (allocated(skeleton("tiny")) for _ in range(2))
    for p, q, shape in zip(first, second, model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)
        assert p.shape == shape.shape
    assert first[0].std().item() == pytest.approx(0.02, rel=0.05)
