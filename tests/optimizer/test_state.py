import pytest
import torch
from resuming import resumed
from torch import nn

from saiopt import SGDSaI

STATE_DTYPES = [torch.float32, torch.bfloat16, torch.int8, "int4"]
LOW_BIT = pytest.mark.parametrize("state_dtype", [torch.int8, "int4"])
EXECUTIONS = pytest.mark.parametrize(
    "execution",
    [{}, {"fused": False}, {"foreach": True}],
    ids=["chosen", "reference", "foreach"],
)


def gpt2_small_params():
    """GPT-2 small's 148 parameters without storage."""
    width, layers = 768, 12
    shapes = [(50257, width), (1024, width), (width,), (width,)]
    for _ in range(layers):
        for fan_in, fan_out in ((1, 3), (1, 1), (1, 4), (4, 1)):
            shapes += [(fan_in * width, fan_out * width), (fan_out * width,)]
        shapes += [(width,)] * 4
    return [nn.Parameter(torch.empty(s, device="meta")) for s in shapes]


def model_with_state(state_dtype, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(77, 100), nn.Tanh(), nn.Linear(100, 50)).to(dtype)
    return model, SGDSaI(model.parameters(), 1e-3, state_dtype=state_dtype, **options)


def train(model, optimizer, steps, first=0):
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 77, generator=generator).to(dtype)
        optimizer.zero_grad()
        (model(x) - x[:, :50]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("state_dtype", "param_dtype", "limit"),
    [
        (None, torch.float32, 4.0),
        (torch.bfloat16, torch.float32, 2.0),
        (None, torch.bfloat16, 2.0),
        (torch.int8, torch.float32, 1.07),
        ("int4", torch.float32, 0.57),
        ("int4", torch.bfloat16, 0.57),
    ],
)
def test_bytes_of_state_per_parameter_of_gpt2_small(state_dtype, param_dtype, limit):
    params = [nn.Parameter(p.to(param_dtype)) for p in gpt2_small_params()]
    numel = sum(p.numel() for p in params)
    assert (len(params), numel) == (148, 124_439_808)
    for param in params:
        param.requires_grad_(True)
    optimizer = SGDSaI(params, state_dtype=state_dtype)
    optimizer.step()
    held = [
        t.nbytes
        for entry in optimizer.state.values()
        for key, t in entry.items()
        if key.startswith("momentum")
    ]
    others = [t for entry in optimizer.state.values() for t in entry.values()]
    assert sum(held) / numel <= limit
    assert sum(t.nbytes for t in others) - sum(held) <= 8 * len(params)


@LOW_BIT
def test_small_and_one_dimensional_parameters_keep_float32(state_dtype):
    shapes = [(64, 64), (63, 64), (5000,), (5, 1000), ()]
    params = [nn.Parameter(torch.ones(s, dtype=torch.bfloat16)) for s in shapes]
    optimizer = SGDSaI(params, state_dtype=state_dtype)
    optimizer.step()
    coded = ["momentum_scale" in optimizer.state[p] for p in params]
    assert coded == [True, False, False, True, False]
    for param, is_coded in zip(params, coded, strict=True):
        dtype = optimizer.state[param]["momentum_buffer"].dtype
        assert (dtype == torch.float32) is not is_coded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES, ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(state_dtype, how, dtype):
    model, optimizer = model_with_state(state_dtype, dtype)
    train(model, optimizer, 4)
    twin, other = resumed(how, model, optimizer, lambda twin: SGDSaI(twin.parameters()))
    train(model, optimizer, 4, first=4)
    train(twin, other, 4, first=4)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert value.dtype == other.state[q][key].dtype
            assert torch.equal(value, other.state[q][key])


@LOW_BIT
@EXECUTIONS
def test_a_low_bit_run_follows_the_float32_one(state_dtype, execution):
    exact, optimizer = model_with_state(torch.float32)
    train(exact, optimizer, 30)
    start, _ = model_with_state(None)
    coded, optimizer = model_with_state(state_dtype, **execution)
    train(coded, optimizer, 30)
    tolerance = 0.02 if state_dtype == torch.int8 else 0.3
    triples = zip(
        start.parameters(), exact.parameters(), coded.parameters(), strict=True
    )
    for before, wide, narrow in triples:
        moved, error = (wide - before).norm(), (narrow - wide).norm()
        assert error < tolerance * moved


@LOW_BIT
def test_the_first_step_is_exactly_that_of_float32(state_dtype):
    params = []
    for each in (torch.float32, state_dtype):
        model, optimizer = model_with_state(each)
        train(model, optimizer, 1)
        params.append(list(model.parameters()))
    for p, q in zip(*params, strict=True):
        assert torch.equal(p, q)


@LOW_BIT
def test_nothing_rounds_stochastically_where_it_must_not(state_dtype):
    model, optimizer = model_with_state(state_dtype, stochastic_rounding=False)
    train(model, optimizer, 2)
    assert all("rounding_seed" not in entry for entry in optimizer.state.values())


@LOW_BIT
def test_a_momentum_that_rises_from_zero_is_coded(state_dtype):
    model, optimizer = model_with_state(state_dtype, momentum=0.0)
    train(model, optimizer, 1)
    weight = model[0].weight
    assert "momentum_buffer" not in optimizer.state[weight]
    optimizer.param_groups[0]["momentum"] = 0.9
    train(model, optimizer, 2)
    assert optimizer.state[weight]["momentum_scale"].dtype == torch.bfloat16


@EXECUTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES, ids=str)
def test_a_step_takes_less_than_a_hundredth_of_gpt2_small(
    state_dtype, dtype, execution
):
    param = nn.Parameter(torch.randn(1000, 1500, dtype=dtype))
    param.grad = torch.randn_like(param)
    optimizer = SGDSaI([param], state_dtype=state_dtype, **execution)
    optimizer.step()
    # The temporaries do not grow with the parameter.
    assert peak_bytes(optimizer.step) < 0.01 * 124_439_808 * dtype.itemsize


def peak_bytes(function):
    """The most memory that a call held at a time, of what it allocated on the CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
