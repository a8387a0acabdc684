import copy
import gc
import threading
import time

import layouts
import pytest
import torch
from layouts import LAYOUTS, OPTIONS
from models import TinyTransformer, next_token_loss, token_batches
from torch import nn
from torch.utils.checkpoint import checkpoint

from saiopt import SGDSaI, step_in_backward


@pytest.fixture
def frozen_heap():
    yield
    gc.unfreeze()


def train(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()


def pair(dtype=torch.float32, **options):
    plain = TinyTransformer().to(dtype)
    released = copy.deepcopy(plain)
    return [(m, SGDSaI(m.parameters(), 1e-3, **options)) for m in (plain, released)]


def assert_same(first, second):
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"maximize": True}])
def test_one_process_follows_step_bit_for_bit(dtype, options):
    (plain, optimizer), (released, its_optimizer) = pair(dtype, **options)
    step_in_backward(its_optimizer)
    train(plain, optimizer, token_batches(5))
    train(released, its_optimizer, token_batches(5))
    assert_same(plain, released)
    for p, q in zip(plain.parameters(), released.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, its_optimizer.state[q][key])


def test_gradients_are_freed_one_by_one():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(6)))
    optimizer = SGDSaI(model.parameters())
    step_in_backward(optimizer)
    most = []
    for param in model.parameters():
        param.register_hook(
            lambda _: most.append(sum(p.grad is not None for p in model.parameters()))
        )
    model(torch.ones(2, 4)).sum().backward()
    assert len(most) == 6
    assert max(most) == 0
    assert all(p.grad is None for p in model.parameters())


def test_paused_micro_batches_accumulate_until_the_last():
    (plain, optimizer), (released, its_optimizer) = pair()
    handle = step_in_backward(its_optimizer)
    for group in (token_batches(3), token_batches(3, seed=1)):
        for ids in group:
            next_token_loss(plain, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
        with handle.paused():
            for ids in group[:-1]:
                next_token_loss(released, ids).backward()
        next_token_loss(released, group[-1]).backward()
    assert_same(plain, released)


def test_removing_the_handle_returns_to_step():
    (plain, optimizer), (released, its_optimizer) = pair()
    handle = step_in_backward(its_optimizer)
    train(released, its_optimizer, token_batches(2))
    handle.remove()
    next_token_loss(released, token_batches(1)[0]).backward()
    assert all(p.grad is not None for p in released.parameters())
    its_optimizer.zero_grad()
    train(released, its_optimizer, token_batches(4)[2:])
    train(plain, optimizer, token_batches(4))
    assert_same(plain, released)


def test_a_zero_first_gradient_still_calibrates_later():
    a, b = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.zeros(4, 2))
    optimizer = SGDSaI([a, b], 0.1)
    step_in_backward(optimizer)
    for step in range(2):
        (b @ a @ torch.ones(3)).sub(1).square().sum().backward()
        assert (optimizer.state[a]["scale"] > 0) == (step > 0)


def step_alone(optimizer, *params):
    for param in params:
        optimizer.step_parameter(param, optimizer.param_groups[0], 0)


def test_a_momentum_that_rises_from_zero_starts_with_the_gradient():
    (plain, optimizer), (released, its_optimizer) = pair(momentum=0.0)
    step_in_backward(its_optimizer)
    batches = token_batches(4)
    for model, each in ((plain, optimizer), (released, its_optimizer)):
        train(model, each, batches[:2])
        each.param_groups[0]["momentum"] = 0.9
        train(model, each, batches[2:])
        assert all("momentum_buffer" in entry for entry in each.state.values())
    assert_same(plain, released)


def test_a_loaded_state_without_a_rounding_seed_gets_one():
    param = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    param.grad = torch.randn(64).bfloat16()
    group = {"lr": 1e-6, "momentum": 0.9, "eps": 1e-8, "weight_decay": 0.0}
    entry = {"gsnr": torch.tensor(8.0), "momentum_buffer": torch.zeros_like(param)}
    optimizer = SGDSaI([param])
    optimizer.load_state_dict(
        {"state": {0: entry}, "param_groups": [{**group, "params": [0]}]}
    )
    step_alone(optimizer, param)
    assert "rounding_seed" in optimizer.state[param]


class Unread(list):
    def __iter__(self):
        raise AssertionError("the step of one parameter looks at others")


def test_the_step_of_one_parameter_looks_at_no_other():
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    for param in params:
        param.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer = SGDSaI(params)
    step_alone(optimizer, *params)
    optimizer.param_groups[0]["params"] = Unread(params)
    before = params[1].detach().clone()
    step_alone(optimizer, params[1])
    assert not torch.equal(params[1], before)


def test_options_that_are_loaded_or_changed_later_are_followed():
    (plain, optimizer), (released, its_optimizer) = pair()
    train(plain, optimizer, token_batches(2))
    optimizer.param_groups[0]["lr"] = 1e-4
    step_in_backward(its_optimizer)
    released.load_state_dict(plain.state_dict())
    its_optimizer.load_state_dict(optimizer.state_dict())
    train(plain, optimizer, token_batches(2))
    train(released, its_optimizer, token_batches(2))
    assert_same(plain, released)
    its_optimizer.param_groups[0]["lr"] = 0.0
    train(released, its_optimizer, token_batches(1))
    assert_same(plain, released)


class Checkpointed(nn.Module):
    """Layers that are computed again for their gradients, perhaps one thrice."""

    def __init__(self, *, shares, use_reentrant):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 4) for _ in range(3)]
        self.layers = nn.ModuleList(layers[:1] * 3 if shares else layers)
        self.head = nn.Linear(4, 1)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.use_reentrant).tanh()
        return self.head(x)


def passes(model, optimizer, count):
    for i in range(count):
        optimizer.zero_grad()
        x = torch.full((2, 4), i + 1.0, requires_grad=True)
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("shares", "use_reentrant"), [(False, True), (False, False), (True, False)]
)
def test_checkpointed_layers_follow_step(shares, use_reentrant):
    plain, released = (
        Checkpointed(shares=shares, use_reentrant=use_reentrant) for _ in range(2)
    )
    passes(plain, SGDSaI(plain.parameters(), 0.1), 4)
    optimizer = SGDSaI(released.parameters(), 0.1)
    step_in_backward(optimizer)
    passes(released, optimizer, 4)
    assert_same(plain, released)


def test_several_gradients_of_a_reentrant_layer_in_one_pass_are_refused():
    model = Checkpointed(shares=True, use_reentrant=True)
    optimizer = SGDSaI(model.parameters())
    step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="must see one gradient per parameter"):
        passes(model, optimizer, 1)


def test_threads_of_several_devices_step_one_after_the_other(monkeypatch):
    layers = [nn.Linear(3, 3) for _ in range(20)]
    optimizer = SGDSaI([p for layer in layers for p in layer.parameters()])
    step_in_backward(optimizer)
    inside, together = [], []
    step = optimizer.step_parameter

    def slow_step(*arguments):
        inside.append(arguments)
        time.sleep(0.001)
        together.append(len(inside))
        step(*arguments)
        inside.pop()

    monkeypatch.setattr(optimizer, "step_parameter", slow_step)
    losses = [
        sum(layer(torch.ones(1, 3)).sum() for layer in layers[i::2]) for i in range(2)
    ]
    threads = [threading.Thread(target=loss.backward) for loss in losses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 40
    assert all(entry["scale"] > 0 for entry in optimizer.state.values())


def test_a_rule_that_needs_all_gradients_is_refused():
    param = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([param], scaling="gsnr_max")
    with pytest.raises(ValueError, match="scaling must not be 'gsnr_max'"):
        step_in_backward(optimizer)
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match="scaling must not be 'gsnr_max'"):
        optimizer.step_parameter(param, optimizer.param_groups[0], 0)
    assert torch.equal(param, torch.ones(3))


def test_a_parameter_that_is_unfrozen_later_steps_then():
    (plain, optimizer), (released, its_optimizer) = pair()
    for model in (plain, released):
        model.head.weight.requires_grad_(False)
    handle = step_in_backward(its_optimizer)
    assert not released.head.weight.requires_grad
    batches = token_batches(6)
    for model, each in ((plain, optimizer), (released, its_optimizer)):
        train(model, each, batches[:2])
        model.head.weight.requires_grad_(True)
        train(model, each, batches[2:4])
        model.head.weight.requires_grad_(False)
        each.zero_grad()
        train(model, each, batches[4:5])
        model.head.weight.requires_grad_(True)
        train(model, each, batches[5:])
        assert (model.head.weight.grad is None) == (model is released)
    assert_same(plain, released)
    handle.remove()
    next_token_loss(released, batches[0]).backward()
    assert released.head.weight.grad is not None


def test_a_loop_that_accumulates_is_refused_at_its_first_step_and_at_any_later():
    model = TinyTransformer()
    optimizer = SGDSaI(model.parameters())
    step_in_backward(optimizer)
    first, *others = token_batches(5)
    next_token_loss(model, first).backward()
    next_token_loss(model, others[0]).backward()
    with pytest.raises(RuntimeError, match=r"within handle\.paused"):
        optimizer.step()
    train(model, optimizer, others[1:3])
    before = [p.detach().clone() for p in model.parameters()]
    next_token_loss(model, others[3]).backward()
    moved = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(
        RuntimeError, match=r"once between two calls of optimizer\.step"
    ):
        next_token_loss(model, first).backward()
    assert not all(map(torch.equal, before, moved))
    assert all(map(torch.equal, moved, model.parameters()))


def test_a_loop_that_never_calls_step_may_run_as_many_passes_as_it_likes():
    (plain, optimizer), (released, its_optimizer) = pair()
    handle = step_in_backward(its_optimizer)
    for ids in token_batches(4):
        next_token_loss(released, ids).backward()
    train(plain, optimizer, token_batches(4))
    assert_same(plain, released)
    handle.remove()
    train(released, its_optimizer, token_batches(2))


def test_a_gradient_scaler_is_refused_before_anything_changes():
    param = nn.Parameter(torch.ones(3))
    step_in_backward(SGDSaI([param]))
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="GradScaler"):
        scaler.scale(param.sum()).backward()
    assert torch.equal(param, torch.ones(3))


def test_an_idle_gradient_scaler_is_no_reason_to_refuse():
    param = nn.Parameter(torch.ones(3))
    step_in_backward(SGDSaI([param]))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(param.square().sum()).backward()
    assert not torch.equal(param, torch.ones(3))


def test_a_gradient_scaler_that_a_frozen_heap_hides_refuses_its_own_step(frozen_heap):
    param = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([param])
    step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    gc.freeze()
    scaler.scale(param.sum()).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)


def test_another_optimizer_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))])
    with pytest.raises(TypeError, match="optimizer must be SGDSaI, got SGD"):
        step_in_backward(optimizer)


def train_both_ways(name, accumulate, scaling="gsnr"):
    """Train under a layout with and without release; return both results."""
    layout = LAYOUTS[name]
    results = []
    for releases in (False, True):
        model = layout.spread(layouts.make_net())
        optimizer, _ = layouts.make_optimizer(model, layout, scaling)
        handle = step_in_backward(optimizer) if releases else None
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for batch in layouts.batches(10):
            ids, labels = layout.share(batch, rank, world)
            if accumulate and handle:
                with handle.paused():
                    nn.functional.cross_entropy(model(ids), labels).backward()
            elif accumulate:
                nn.functional.cross_entropy(model(ids), labels).backward()
            nn.functional.cross_entropy(model(ids), labels).backward()
            if handle:
                assert all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        results.append(layouts.full_params(model))
    return results


@pytest.mark.parametrize("name", ["DDP", "FSDP2", "HSDP", "FSDP2 + TP"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_layout_follows_step_bit_for_bit(workers, name, accumulate):
    world = LAYOUTS[name].world
    for plain, stepped in workers.run(world, train_both_ways, name, accumulate):
        for key, value in plain.items():
            assert torch.equal(stepped[key], value)


@pytest.mark.parametrize("name", ["DDP", "FSDP2", "FSDP2 + TP"])
def test_a_layout_follows_the_finer_rules_step(workers, name):
    world = LAYOUTS[name].world
    for plain, stepped in workers.run(
        world, train_both_ways, name, False, "orthogonal"
    ):
        for key, value in plain.items():
            # Matrices of one shape are not orthogonalised together here.
            torch.testing.assert_close(stepped[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scaling", ["factored", "orthogonal"])
def test_a_released_step_by_a_finer_rule_is_that_of_step(scaling):
    results = []
    for releases in (False, True):
        model = layouts.make_net()
        optimizer, _ = layouts.make_optimizer(model, LAYOUTS["DDP"], scaling)
        if releases:
            step_in_backward(optimizer)
        layouts.train(model, optimizer, layouts.the_same, 8)
        results.append(layouts.full_params(model))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-10, atol=1e-12)


def test_replicas_that_share_their_work_do_not_step_one_by_one():
    param = nn.Parameter(torch.ones(3, 3))
    optimizer = SGDSaI([param], scaling="orthogonal", replicated=True)
    with pytest.raises(ValueError, match="replicated must be False when stepping"):
        step_in_backward(optimizer)
    param.grad = torch.ones(3, 3)
    with pytest.raises(ValueError, match="replicated must be False in step_parameter"):
        optimizer.step_parameter(param, optimizer.param_groups[0], 0)
    assert torch.equal(param, torch.ones(3, 3))


def released_under_fsdp1():
    optimizer = SGDSaI(layouts.fsdp1(layouts.make_net()).parameters())
    with pytest.raises(RuntimeError, match="use fully_shard"):
        step_in_backward(optimizer)


def test_fsdp1_whose_parameters_never_see_gradients_is_refused(workers):
    workers.run(2, released_under_fsdp1)


def frozen_before_and_after_wrapping(name):
    """Freeze the heap with DDP hidden in it, then without, then after a gradient."""
    layout = LAYOUTS[name]

    def backward(model):
        nn.functional.cross_entropy(model(ids), labels).backward()

    ids, labels = next(layouts.batches(1))
    model = layout.spread(layouts.make_net())
    before = layouts.full_params(model)
    handle = step_in_backward(SGDSaI(model.parameters(), **OPTIONS))
    refused = None
    gc.freeze()
    try:
        backward(model)
    except RuntimeError as error:
        refused = str(error)
        for key, value in layouts.full_params(model).items():
            assert torch.equal(before[key], value)
        handle.remove()
        seen = layout.spread(layouts.make_net())
        step_in_backward(SGDSaI(seen.parameters(), **OPTIONS))
        backward(seen)
        gc.freeze()
        backward(seen)
    finally:
        gc.unfreeze()
    return refused


@pytest.mark.parametrize(
    ("name", "world", "refuses"),
    [("DDP", 2, True), ("DDP", 1, False), ("FSDP2", 2, False)],
)
def test_ddp_that_a_frozen_heap_may_hide_is_refused(workers, name, world, refuses):
    for refused in workers.run(world, frozen_before_and_after_wrapping, name):
        assert bool(refused) is refuses
        assert not refuses or "call it after the first backward pass" in refused
