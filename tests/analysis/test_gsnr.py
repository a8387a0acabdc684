import math

import layouts
import pytest
import torch
from torch import nn

from saiopt import SGDSaI
from saiopt.analysis import GSNRProbe, GSNRRow
from saiopt.analysis.gsnr import update_sizes


@pytest.mark.parametrize("shift", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("size", [2, 17, 4096])
def test_gsnr_has_its_closed_form(size: int, shift: float) -> None:
    parameter = nn.Parameter(torch.zeros(size))
    parameter.grad = torch.randn(size) + shift
    [row] = GSNRProbe([("weight", parameter)]).record(0)
    grad = parameter.grad.double()
    r = (grad.mean() / grad.std(unbiased=False)).item()
    expected = math.sqrt((size - 1) * (1 + r * r))
    assert row.gsnr == pytest.approx(expected, rel=1e-5)
    assert row.ratio == pytest.approx(expected / math.sqrt(size), rel=1e-5)
    assert row.relative_mean == pytest.approx(abs(r), rel=1e-5)


def test_measuring_changes_nothing() -> None:
    model = nn.Linear(4, 3)
    model(torch.randn(2, 4)).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    GSNRProbe(model).record(0)
    assert all(map(torch.equal, before, (p.grad for p in model.parameters())))
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_without_a_gradient_are_left_out() -> None:
    model = nn.Linear(4, 3)
    model.weight.grad = torch.randn(3, 4)
    assert [row.block for row in GSNRProbe(model).record(0)] == ["weight"]


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_useless_gradient_has_no_gsnr(value: float) -> None:
    model = nn.Linear(4, 3, bias=False)
    model.weight.grad = torch.full((3, 4), value)
    [row] = GSNRProbe(model).record(0)
    assert math.isnan(row.gsnr)
    assert math.isnan(row.relative_mean)


def test_equal_entries_have_no_relative_mean() -> None:
    model = nn.Linear(4, 3, bias=False)
    model.weight.grad = torch.full((3, 4), 0.1)
    [row] = GSNRProbe(model).record(0)
    assert row.gsnr == pytest.approx(math.sqrt(12))
    assert math.isnan(row.relative_mean)


def test_rows_are_kept_in_the_order_of_recording() -> None:
    model = nn.Linear(4, 3)
    probe = GSNRProbe(model)
    for step in (0, 10):
        model(torch.randn(2, 4)).square().sum().backward()
        probe.record(step)
    assert [(row.block, row.step) for row in probe.rows] == [
        ("weight", 0),
        ("bias", 0),
        ("weight", 10),
        ("bias", 10),
    ]


def test_the_plot_is_written_in_the_form_of_its_suffix(tmp_path) -> None:
    probe = GSNRProbe(model := nn.Linear(4, 3))
    for step in range(3):
        model(torch.randn(2, 4)).square().sum().backward()
        probe.record(step)
    probe.plot(tmp_path / "ratio.svg", "digits")
    assert "digits" in (tmp_path / "ratio.svg").read_text()


def test_sparsity_is_the_share_of_zeros() -> None:
    parameter = nn.Parameter(torch.ones(8))
    parameter.grad = torch.tensor([0.0, 1.0, -2.0, 0.0, 3.0, 1.0, 1.0, 1.0])
    [row] = GSNRProbe([("weight", parameter)]).record(0)
    assert row.sparsity == 0.25


@pytest.mark.parametrize("scaling", ["gsnr", "none", "adamw", "sgd"])
def test_the_update_is_what_the_step_moved(scaling: str) -> None:
    layer = nn.Linear(6, 5)
    optimizer = {
        "adamw": lambda: torch.optim.AdamW(layer.parameters()),
        "sgd": lambda: torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9),
    }.get(
        scaling,
        lambda: SGDSaI(layer.parameters(), lr=0.1, weight_decay=0, scaling=scaling),
    )()
    probe = GSNRProbe(layer)
    for step in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 6)).square().mean().backward()
        before = [p.detach().clone() for p in layer.parameters()]
        probe.record(step)
        optimizer.step()
        rows = probe.record_updates(optimizer)
        for row, old, p in zip(rows, before, layer.parameters(), strict=True):
            moved = ((p - old).norm() / p.norm()).item()
            assert row.step == step
            if scaling == "adamw":
                assert math.isnan(row.update)
            else:
                assert row.update == pytest.approx(moved, rel=1e-4)
    assert len(probe.rows) == 6


def probed(name: str | None) -> list[GSNRRow]:
    """Train two steps of a layout, or of one process, one block frozen."""
    net = layouts.make_net()
    net.norm.bias.requires_grad_(False)
    layout = layouts.LAYOUTS.get(name or "")
    model = layout.spread(net) if layout else net
    probe = GSNRProbe(model)
    optimizer = SGDSaI(model.parameters(), **layouts.OPTIONS)
    rank = torch.distributed.get_rank() if layout else 0
    for step, batch in enumerate(layouts.batches(2)):
        ids, labels = layout.share(batch, rank, layout.world) if layout else batch
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        probe.record(step)
        optimizer.step()
        probe.record_updates(optimizer)
    return probe.rows


@pytest.mark.parametrize(
    "name", ["FSDP1, original parameters", "FSDP2, empty shards", "FSDP2 + TP"]
)
def test_every_rank_measures_whole_blocks(workers, name: str) -> None:
    expected = probed(None)
    assert {row.block for row in expected}.isdisjoint({"norm.bias"})
    for rows in workers.run(layouts.LAYOUTS[name].world, probed, name):
        for row, alone in zip(rows, expected, strict=True):
            assert row.block.removeprefix("_fsdp_wrapped_module.") == alone.block
            assert (row.numel, row.step) == (alone.numel, alone.step)
            for field in ("gsnr", "sparsity", "update", "relative_mean"):
                value = getattr(alone, field)
                assert getattr(row, field) == pytest.approx(value, 1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["muon", "nesterov"])
def test_a_momentum_that_is_not_the_step_gives_no_update(name: str) -> None:
    layer = nn.Linear(6, 5, bias=False)
    optimizer = {
        "muon": lambda: torch.optim.Muon(layer.parameters(), lr=0.1),
        "nesterov": lambda: torch.optim.SGD(
            layer.parameters(), lr=0.1, momentum=0.9, nesterov=True
        ),
    }[name]()
    layer(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    assert "momentum_buffer" in optimizer.state[layer.weight]
    assert update_sizes(optimizer) == {}


def test_measuring_updates_leaves_the_state_as_it_is() -> None:
    layer = nn.Linear(6, 5)
    optimizer = SGDSaI(layer.parameters())
    assert update_sizes(optimizer) == {}
    assert not optimizer.state
