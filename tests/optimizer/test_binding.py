import copy
import gc
import weakref

import pytest
import torch
from models import TinyTransformer, next_token_loss, token_batches
from torch import nn

from saiopt import SGDSaI
from saiopt.optimizer.lane import Gradients
from saiopt.update import cpu, library, reference

EXECUTIONS = {
    "chosen": {},
    "reference": {"fused": False},
    "foreach": {"foreach": True},
}
EVERY_EXECUTION = pytest.mark.parametrize(
    "execution", EXECUTIONS.values(), ids=EXECUTIONS
)
NEEDS_KERNEL = pytest.mark.skipif(
    isinstance(library.load(), str), reason=f"no kernel: {library.load()}"
)


def train(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()


def block(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    param.grad = torch.randn(shape, generator=generator).to(dtype)
    return param


# What a step writes, it writes after the update


@EVERY_EXECUTION
@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_a_step_that_fails_in_its_update_can_be_taken_again(
    execution, fails_at, monkeypatch
):
    runs = []
    for fails in (False, True):
        torch.manual_seed(0)
        params = [block((64, 96), torch.bfloat16), block((5,), torch.bfloat16, seed=1)]
        options = {"state_dtype": "int4", **execution}
        optimizer = SGDSaI(params, 1e-3, **options)
        for step in range(6):
            for param in params:
                seed = torch.Generator().manual_seed(step)
                grad = torch.randn(param.shape, generator=seed)
                param.grad = grad.bfloat16() * (param.dim() == 2 or step > 0)
            if fails and step == fails_at:
                fail_once(optimizer, monkeypatch)
            optimizer.step()
        runs.append((params, optimizer))
    (plain, its), (failed, others) = runs
    for p, q in zip(plain, failed, strict=True):
        assert torch.equal(p, q)
        for key, value in its.state[p].items():
            assert torch.equal(value, others.state[q][key])


def fail_once(optimizer, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        for place in (reference, cpu):
            patch.setattr(place, "tiles" if place is reference else "_rule", fail)
        with pytest.raises(MemoryError):
            optimizer.step()


def test_binding_blocks_changes_no_noise_and_no_stage():
    param = block((64, 96), torch.bfloat16)
    optimizer = SGDSaI([param])
    optimizer.step()
    before = copy.deepcopy(optimizer.state[param])
    optimizer._bind(Gradients())
    for key, value in before.items():
        assert torch.equal(value, optimizer.state[param][key])


# It is made once


def test_blocks_are_bound_once_whatever_a_usual_training_does(bindings):
    model = TinyTransformer()
    optimizer = SGDSaI(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for step, ids in enumerate(token_batches(6)):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        next_token_loss(model, ids).backward()
        if step == 4:
            model.head.weight.grad = None
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.state_dict()
    assert len(bindings) == 1


@pytest.mark.parametrize(
    ("option", "value", "count"),
    [
        ("momentum", 0.5, 1),
        ("weight_decay", 0.5, 1),
        ("maximize", True, 1),
        ("momentum", 0.0, 2),
        ("fused", False, 2),
        ("scaling", "none", 2),
        ("state_dtype", torch.bfloat16, 2),
    ],
)
def test_blocks_are_bound_anew_where_an_option_asks_for_it(
    option, value, count, bindings
):
    param = block((3, 4))
    optimizer, twin = SGDSaI([param]), copy.deepcopy(param)
    optimizer.step()
    optimizer.param_groups[0][option] = value
    for _ in range(2):
        optimizer.step()
    assert len(bindings) == count
    others = SGDSaI([twin])
    twin.grad = param.grad.clone()
    others.step()
    others.param_groups[0][option] = value
    for _ in range(2):
        others._binding = None
        others.step()
    assert torch.equal(param, twin)


@EVERY_EXECUTION
def test_groups_of_which_some_gradients_are_missing_step_the_others(execution):
    together = [block((7, 9), seed=i) for i in range(5)]
    alone = copy.deepcopy(together)
    optimizer = SGDSaI(together, **execution)
    singles = [SGDSaI([p], **execution) for p in alone]
    for step in range(8):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            generator = torch.Generator().manual_seed(10 * step + i)
            has_one = (step + i) % 3 > 0
            p.grad = torch.randn(7, 9, generator=generator) if has_one else None
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        for single in singles:
            single.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_parameter_that_is_taken_out_is_freed():
    kept, gone = block((3, 4)), block((3, 4))
    optimizer = SGDSaI([kept, gone])
    optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    del optimizer.state[gone]
    seen = weakref.ref(gone)
    del gone
    gc.collect()
    assert seen() is None
    optimizer.step()


def test_two_lanes_of_a_group_step_together():
    params = [block((64, 96)), block((5,)), block((64, 96), torch.bfloat16)]
    params.append(block((3, 4), torch.float16))
    optimizer = SGDSaI(params, 1e-2, state_dtype="int4")
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))


# Where entries do not lie in memory as they read


def refuse_work(blocks, _):
    assert not blocks


@NEEDS_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, torch.int8, "int4"])
def test_channels_last_weights_step_in_the_kernel_as_contiguous_ones(
    dtype, state_dtype, monkeypatch
):
    if dtype == torch.float64 and state_dtype is not None:
        state_dtype = None
    monkeypatch.setattr(reference, "update", refuse_work)
    models = []
    for last in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 48, (1, 3))).to(dtype)
        if last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = SGDSaI(model.parameters(), 1e-2, state_dtype=state_dtype)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            for param in model.parameters():
                grad = torch.randn(param.shape, generator=generator).to(dtype)
                param.grad = torch.empty_like(param).copy_(grad)
            optimizer.step()
        models.append((model, optimizer))
    (plain, its), (last, others) = models
    assert not last[0].weight.is_contiguous()
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.equal(p, q)
        for key, value in its.state[p].items():
            assert torch.equal(value, others.state[q][key])


@NEEDS_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lay_out",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
        lambda t: torch.cat([t, t])[::2].copy_(t),
    ],
    ids=["transposed", "every other column", "every other row"],
)
def test_any_strides_of_weights_and_gradients_step_in_the_kernel(
    lay_out, dtype, monkeypatch
):
    monkeypatch.setattr(reference, "update", refuse_work)
    plain, strided = block((64, 96), dtype), block((64, 96), dtype)
    strided.data = lay_out(strided.data)
    optimizers = [SGDSaI([p], state_dtype="int4") for p in (plain, strided)]
    for step in range(4):
        strided.grad = lay_out(plain.grad) if step % 2 else plain.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, strided)


# Memory that is not there


@EVERY_EXECUTION
def test_a_momentum_that_was_set_to_none_is_made_anew(execution):
    param = block((3, 4))
    optimizer = SGDSaI([param], **execution)
    optimizer.step()
    scale = optimizer.state[param]["scale"].clone()
    optimizer.state[param]["momentum_buffer"] = None
    param.grad = torch.randn(3, 4)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)
    assert torch.equal(optimizer.state[param]["scale"], scale)


def free(tensor):
    tensor.untyped_storage().resize_(0)


def shrink(tensor):
    tensor.data = tensor.data.flatten()[:4].clone()


def halve(tensor):
    tensor.untyped_storage().resize_(tensor.nbytes // 2)


@EVERY_EXECUTION
@pytest.mark.parametrize("take", ["step", "step_parameter"])
@pytest.mark.parametrize("damage", [free, shrink, halve])
@pytest.mark.parametrize("which", ["momentum_buffer", "momentum_scale"])
def test_a_momentum_without_its_memory_is_refused(execution, take, damage, which):
    other, param = block((3, 4)), block((64, 96))
    optimizer = SGDSaI([other, param], state_dtype=torch.int8, **execution)
    optimizer.step()
    damage(optimizer.state[param][which])
    if damage is halve:
        # Its address may be what it was; a new binding looks closer.
        optimizer._binding = None
    before = other.detach().clone()
    alone = lambda: optimizer.step_parameter(param, {}, 1)  # noqa: E731
    step = optimizer.step if take == "step" else alone
    with pytest.raises(RuntimeError, match=f"{which} must (have memory|be torch)"):
        step()
    assert torch.equal(other, before)


@EVERY_EXECUTION
def test_a_momentum_whose_memory_was_freed_may_wait_for_a_gradient(execution):
    other, param = block((3, 4)), block((64, 96))
    optimizer = SGDSaI([other, param], **execution)
    optimizer.step()
    buffer = optimizer.state[param]["momentum_buffer"]
    size, kept = buffer.untyped_storage().nbytes(), buffer.clone()
    free(buffer)
    param.grad = None
    before = other.detach().clone()
    for _ in range(2):
        optimizer.step()
    assert not torch.equal(other, before)
    buffer.untyped_storage().resize_(size)
    buffer.copy_(kept)
    param.grad = torch.randn(64, 96)
    optimizer.step()
    torch.testing.assert_close(buffer, kept.lerp(param.grad, 0.1))


@EVERY_EXECUTION
@pytest.mark.parametrize("steps_before", [0, 2])
def test_gradients_without_memory_are_read_as_they_read_or_refused(
    execution, steps_before
):
    params = [block((3, 4)), block((3, 4))]
    optimizer = SGDSaI(params, **execution)
    for _ in range(steps_before):
        optimizer.step()
    expected = copy.deepcopy(optimizer)
    # A gradient that is known to be zero has no memory.
    params[0].grad = torch._efficientzerotensor(3, 4)
    twins = expected.param_groups[0]["params"]
    twins[0].grad = torch.zeros(3, 4)
    twins[1].grad = params[1].grad.clone()
    optimizer.step()
    expected.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q)
    freed = torch.randn(3, 4)
    params[1].grad = freed
    free(freed)
    before = params[1].detach().clone()
    with pytest.raises(RuntimeError, match="gradients must have memory"):
        optimizer.step()
    assert torch.equal(params[1], before)


# One parameter alone


def test_the_step_of_one_parameter_follows_the_group_that_has_it_now():
    layer = nn.Linear(4, 4)
    optimizer = SGDSaI(layer.parameters(), lr=0.0)
    stale = optimizer.param_groups[0]
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    optimizer.load_state_dict(saved)
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step_parameter(layer.weight, stale, 0)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_the_step_of_a_foreign_parameter_is_refused_and_leaves_no_trace(steps_before):
    layer, other = nn.Linear(4, 4), block((4, 4))
    optimizer = SGDSaI(layer.parameters())
    layer(torch.randn(2, 4)).sum().backward()
    for _ in range(steps_before):
        optimizer.step()
    with pytest.raises(ValueError, match="p must be a parameter of this optimizer"):
        optimizer.step_parameter(other, optimizer.param_groups[0], 0)
    optimizer.step()
    optimizer.state_dict()


def test_the_step_of_a_parameter_without_a_gradient_does_nothing():
    param, frozen = block((3, 4)), block((3, 4))
    frozen.requires_grad_(False)
    frozen.grad = param.grad = None
    optimizer = SGDSaI([param, frozen])
    before = param.detach().clone()
    for p in (param, frozen):
        optimizer.step_parameter(p, optimizer.param_groups[0], 0)
    assert torch.equal(param, before)


# What a compiler sees


def test_the_compiler_sees_whole_tensors():
    nodes = []

    def count(graph, _):
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    param = block((1024, 512), torch.bfloat16)
    # Powers of two, which a float and a tensor hold alike.
    options = {"lr": 2**-7, "momentum": 0.5, "weight_decay": 0.5, "scaling": "none"}
    options |= {"state_dtype": torch.bfloat16, "fused": False}
    optimizer = SGDSaI([param], **options)
    twin = copy.deepcopy(optimizer)
    [[other]] = [group["params"] for group in twin.param_groups]
    other.grad = param.grad.clone()
    torch._dynamo.reset()
    step = torch.compile(twin.step, backend=count)
    for _ in range(3):
        optimizer.step()
        step()
    assert max(nodes) < 100
    assert torch.equal(param, other)
