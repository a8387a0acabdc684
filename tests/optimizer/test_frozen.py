"""What will never step decides nothing: a parameter is judged when it first trains."""

import copy

import pytest
import torch
from torch import nn

import saiopt.update.reference
from saiopt import SGDSaI, decay_groups, get_scales, set_scales, step_in_backward
from saiopt.memory import estimate
from saiopt.update import library

NEEDS_KERNEL = pytest.mark.skipif(
    isinstance(library.load(), str), reason=f"no kernel: {library.load()}"
)
FROZEN = {
    "float16": lambda: torch.zeros(2).half(),
    "float8": lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    "packed 4 bits": lambda: torch.zeros(4, 1, dtype=torch.uint8),
    "int64": lambda: torch.zeros(2, dtype=torch.int64),
    "bool": lambda: torch.zeros(2, dtype=torch.bool),
    "complex64": lambda: torch.zeros(2, dtype=torch.complex64),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(2, device="meta"),
    "without entries": lambda: torch.zeros(0),
}
# What cannot train, and how it is refused.
UNTRAINABLE = {
    "float8": (torch.float8_e4m3fn, "got torch.float8_e4m3fn with layout"),
    "complex64": (torch.complex64, "got torch.complex64 with layout"),
}
EVERY_KIND = pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)


def still(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def weight(dtype=torch.float32, shape=(64, 96)):
    generator = torch.Generator().manual_seed(7)
    return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))


def give_grad(param, step=0):
    generator = torch.Generator().manual_seed(step)
    param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def run(optimizer, param):
    """What a run does with an optimizer, which it returns."""
    for step in range(2):
        give_grad(param, step)
        optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    give_grad(param, 2)
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            optimizer.step_parameter(p, group, i)
    optimizer.add_param_group({"params": [still(torch.zeros(3).half())]})
    optimizer.zero_grad()
    handle = step_in_backward(optimizer)
    (param * torch.arange(96.0)).sum().backward()
    handle.remove()
    return optimizer


@EVERY_KIND
def test_a_frozen_parameter_of_any_kind_changes_nothing(frozen, every_execution):
    alone, beside = weight(), weight()
    run(SGDSaI([alone], **every_execution), alone)
    optimizer = SGDSaI([still(frozen()), beside], **every_execution)
    assert list(run(optimizer, beside).state) == [beside]
    assert torch.equal(alone, beside)


@NEEDS_KERNEL
@EVERY_KIND
def test_a_frozen_parameter_of_any_kind_may_stand_beside_fused_ones(frozen):
    param = weight()
    optimizer = SGDSaI([still(frozen()), param], fused=True)
    assert list(run(optimizer, param).state) == [param]


@pytest.fixture
def through_reference(monkeypatch):
    """Collects the parameters that do not go through a kernel, when they step."""
    seen = []

    def note(function):
        def noting(first, *args):
            # One function takes a block, another a list of tensors or a tensor.
            seen.append(getattr(first, "param", first))
            return function(first, *args)

        return noting

    for name in ("_apply_through_copies", "_apply", "average"):
        function = getattr(saiopt.update.reference, name)
        monkeypatch.setattr(saiopt.update.reference, name, note(function))
    return seen


@NEEDS_KERNEL
@EVERY_KIND
@pytest.mark.parametrize("state_dtype", [None, torch.int8])
def test_a_frozen_parameter_takes_no_other_off_the_kernel(
    frozen, state_dtype, through_reference
):
    param = weight()
    optimizer = SGDSaI([still(frozen()), param], state_dtype=state_dtype)
    for step in range(3):
        give_grad(param, step)
        optimizer.step()
    assert optimizer.state[param]["scale"] > 0
    assert through_reference == []


@NEEDS_KERNEL
@pytest.mark.parametrize("takes", ["a gradient", "none"])
def test_what_has_no_kernel_takes_no_other_off_it(takes, through_reference):
    params = [weight(), weight(torch.float16), weight(torch.bfloat16)]
    optimizer = SGDSaI(params, state_dtype=torch.int8)
    for step in range(3):
        for param in params:
            give_grad(param, step)
        if takes == "none":
            params[1].grad = None
        optimizer.step()
    through_copies = {
        t.data_ptr() for t in through_reference if isinstance(t, nn.Parameter)
    }
    halves = {params[1].data_ptr()} if takes == "a gradient" else set()
    assert through_copies == halves


def refused(optimizer, kind, match):
    trained = optimizer.param_groups[0]["params"][0]
    before = trained.detach().clone()
    with pytest.raises(kind, match=match):
        optimizer.step()
    assert torch.equal(trained, before)


NAMED = {
    "named": (lambda params: list(zip(("a", "base.b"), params, strict=True)), "base.b"),
    "not named": (lambda params: params, "parameter 1 of group 0"),
}
EITHER_NAME = pytest.mark.parametrize(("named", "name"), NAMED.values(), ids=NAMED)


@pytest.mark.parametrize(("dtype", "match"), UNTRAINABLE.values(), ids=UNTRAINABLE)
@EITHER_NAME
def test_what_cannot_train_is_refused_by_name_when_it_is_unfrozen(
    dtype, match, named, name
):
    param, frozen = weight(), still(torch.ones(2).to(dtype))
    optimizer = SGDSaI(named([param, frozen]))
    give_grad(param)
    optimizer.step()
    frozen.requires_grad_()
    refused(optimizer, TypeError, f"{match} .* for '?{name}")
    frozen.requires_grad_(False)
    optimizer.step()


@EITHER_NAME
def test_half_precision_that_asks_for_noise_is_refused_by_name_when_unfrozen(
    named, name
):
    param, frozen = weight(torch.bfloat16), still(torch.ones(2).half())
    optimizer = SGDSaI(named([param, frozen]), stochastic_rounding=True)
    give_grad(param)
    optimizer.step()
    frozen.requires_grad_()
    refused(optimizer, ValueError, f"float16 parameters, got True for '?{name}")


@NEEDS_KERNEL
@EITHER_NAME
def test_what_no_kernel_can_step_is_refused_by_name_at_its_first_gradient(named, name):
    param, frozen = weight(), still(torch.ones(2).half())
    optimizer = SGDSaI(named([param, frozen]), fused=True)
    give_grad(param)
    optimizer.step()
    frozen.requires_grad_()
    optimizer.step()
    give_grad(frozen)
    refused(optimizer, RuntimeError, f"torch.float16, got True for '?{name}")
    frozen.grad = None
    optimizer.step()


@NEEDS_KERNEL
def test_meta_parameters_that_to_empty_left_behind_do_nothing_as_in_torch():
    for kind in (torch.optim.AdamW, SGDSaI):
        with torch.device("meta"):
            model = nn.Linear(3, 2)
        optimizer = kind(model.parameters(), fused=True)
        model.to_empty(device="cpu")
        for param in model.parameters():
            give_grad(param)
        optimizer.step()


def test_meta_parameters_with_gradients_are_refused_where_a_kernel_is_asked_for():
    with torch.device("meta"):
        model = nn.Linear(3, 2)
        optimizer = SGDSaI(model.parameters(), fused=True)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="a parameter is on meta, got True"):
        optimizer.step()


def test_meta_parameters_take_no_others_noise():
    runs = []
    for left in ([], [nn.Parameter(torch.zeros(2, device="meta").bfloat16())]):
        params = [weight(torch.bfloat16), weight(torch.bfloat16, (5,))]
        optimizer = SGDSaI([*left, *params])
        for param in params:
            give_grad(param)
        optimizer.step()
        runs.append([int(optimizer.state[p]["rounding_seed"]) for p in params])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 2


class QuantizedLinear(nn.Module):
    """A frozen base of 4 bits, two in a byte, beside an adapter that trains."""

    def __init__(self):
        super().__init__()
        self.packed = still(torch.randint(0, 256, (64, 48), dtype=torch.uint8))
        self.down = nn.Parameter(0.1 * torch.randn(96, 4))
        self.up = nn.Parameter(torch.zeros(4, 64))
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x):
        high, low = self.packed >> 4, self.packed & 15
        base = (torch.stack((high, low), -1).flatten(1) - 7.5) / 32
        return x @ (base.T + self.down @ self.up) + self.bias


@pytest.mark.parametrize("grouped", [False, True])
def test_a_quantized_base_trains_its_adapters_from_all_parameters(grouped):
    torch.manual_seed(0)
    model = QuantizedLinear()
    params = decay_groups(model, 0.1) if grouped else model.parameters()
    optimizer = SGDSaI(params, 0.01)
    packed, losses = model.packed.clone(), []
    inputs, target = torch.randn(32, 96), torch.randn(32, 64)
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(model.packed, packed)
    scales = get_scales(optimizer, model)
    assert scales.get("packed", 0.0) == 0
    assert min(scales[name] for name in ("down", "up", "bias")) > 0
    set_scales(optimizer, model, {"up": 2.0})
    assert get_scales(optimizer, model)["up"] == 2


def test_the_memory_of_a_quantized_base_can_be_told():
    found = estimate(QuantizedLinear(), SGDSaI)
    trained = 96 * 4 + 4 * 64 + 64
    assert found.state.tensor_bytes == 4 * (trained + 3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float16])
def test_a_parameter_may_be_quantized_in_place_once_it_has_trained(
    dtype, every_execution
):
    params = [weight(), weight()]
    optimizer = SGDSaI(params, **every_execution)
    for param in params:
        give_grad(param)
    optimizer.step()
    params[1].grad = None
    params[1].requires_grad_(False)
    params[1].data = params[1].data.to(dtype)
    held = {k: v.clone() for k, v in optimizer.state[params[1]].items()}
    stored = params[1].detach().clone()
    for step in range(1, 3):
        give_grad(params[0], step)
        optimizer.step()
        optimizer.step_parameter(params[1], optimizer.param_groups[0], 1)
    assert torch.equal(params[1].float(), stored.float())
    for key, value in optimizer.state[params[1]].items():
        assert torch.equal(value, held[key])


def test_a_parameter_that_is_frozen_for_a_while_goes_on_where_it_was(every_execution):
    runs = []
    for pauses in (False, True):
        params = [weight(), weight(shape=(5,))]
        optimizer = SGDSaI(params, **every_execution)
        for step in range(6):
            for param in params:
                give_grad(param, step)
            rests = 2 <= step < 4
            params[1].requires_grad_(not (pauses and rests))
            if rests:
                params[1].grad = None
            if step == 3:
                # A new binding meets the parameter while it is frozen.
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
        runs.append(params)
    for moving, paused in zip(*runs, strict=True):
        assert torch.equal(moving, paused)
