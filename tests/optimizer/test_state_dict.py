import copy
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from layouts import LAYOUTS, Net
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from saiopt import SGDSaI, get_scales
from saiopt.low_bit import (
    Code,
    dequantize,
    dither_bits,
    quantize,
    using,
)


def authors_state_dict(model, dtype=torch.float32):
    """A state_dict as the authors' SGD_sai 1.0.3 writes it after a step."""
    state = {
        i: {
            "gsnr": torch.tensor(2.0 + i, dtype=dtype),
            "momentum_buffer": torch.randn_like(param),
        }
        for i, param in enumerate(model.parameters())
    }
    group = {"lr": 0.25, "momentum": 0.8, "eps": 1e-6, "weight_decay": 0.125}
    group["params"] = list(state)
    return {"state": state, "param_groups": [group]}


def test_the_authors_state_continues_under_their_rule():
    model = nn.Linear(3, 2)
    saved = authors_state_dict(model)
    optimizer = SGDSaI(model.parameters())
    optimizer.load_state_dict(saved)
    assert get_scales(optimizer, model) == {"weight": 2.0, "bias": 3.0}
    before = model.weight.detach().clone()
    grad = torch.randn(2, 3)
    model.weight.grad = grad.clone()
    optimizer.step()
    momentum = 0.8 * saved["state"][0]["momentum_buffer"] + 0.2 * grad
    expected = before * (1 - 0.25 * 0.125) - 0.25 * 2.0 * momentum
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("poisoned", [0.0, float("nan"), float("inf")])
def test_a_block_that_the_authors_class_lost_calibrates_anew(poisoned):
    model = nn.Linear(3, 2)
    saved = authors_state_dict(model)
    saved["state"][0]["gsnr"].fill_(poisoned)
    saved["state"][0]["momentum_buffer"].fill_(poisoned)
    optimizer = SGDSaI(model.parameters())
    optimizer.load_state_dict(saved)
    model.weight.grad = torch.randn(2, 3)
    optimizer.step()
    assert get_scales(optimizer, model)["weight"] >= 5**0.5
    assert model.weight.isfinite().all()


def test_the_authors_scale_may_be_a_number():
    model = nn.Linear(3, 2)
    saved = authors_state_dict(model)
    saved["state"][0]["gsnr"] = 5.0
    optimizer = SGDSaI(model.parameters())
    with torch.device("meta"):
        optimizer.load_state_dict(saved)
    assert get_scales(optimizer, model)["weight"] == 5


def test_parameters_without_the_authors_state_calibrate_later():
    model = nn.Linear(3, 2)
    saved = authors_state_dict(model)
    del saved["state"][1]
    optimizer = SGDSaI(model.parameters())
    optimizer.load_state_dict(saved)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    assert get_scales(optimizer, model)["weight"] == 2
    assert get_scales(optimizer, model)["bias"] > 0


def test_the_authors_16_bit_state_gets_a_float32_scale():
    model = nn.Linear(3, 2).bfloat16()
    optimizer = SGDSaI(model.parameters())
    optimizer.load_state_dict(authors_state_dict(model, torch.bfloat16))
    assert optimizer.state[model.weight]["scale"].dtype == torch.float32
    model.weight.grad = torch.randn_like(model.weight)
    optimizer.step()
    assert "rounding_seed" in optimizer.state[model.weight]


def test_dtypes_survive_loading_where_torch_would_cast():
    model = nn.Linear(3, 2).bfloat16()
    optimizer = SGDSaI(model.parameters(), state_dtype=torch.float32)
    model.weight.grad = torch.randn_like(model.weight)
    optimizer.step()
    scale = optimizer.state[model.weight]["scale"].clone()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    entry = optimizer.state[model.weight]
    assert {k: v.dtype for k, v in entry.items()} == {
        "scale": torch.float32,
        "momentum_buffer": torch.float32,
        "rounding_seed": torch.int32,
    }
    assert torch.equal(entry["scale"], scale)


def test_two_optimizers_never_share_a_tensor():
    model = nn.Linear(3, 2)
    first, second = SGDSaI(model.parameters()), SGDSaI(model.parameters())
    model.weight.grad = torch.randn(2, 3)
    first.step()
    second.load_state_dict(first.state_dict())
    for key, value in first.state[model.weight].items():
        assert value.data_ptr() != second.state[model.weight][key].data_ptr()


def test_an_optimizers_own_tensors_are_not_copied_when_it_reloads_them():
    model = nn.Linear(3, 2)
    optimizer = SGDSaI(model.parameters())
    model.weight.grad = torch.randn(2, 3)
    optimizer.step()
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[model.weight]["momentum_buffer"] is buffer


def test_options_load_as_in_torch_but_the_execution_stays():
    model = nn.Linear(3, 2)
    saved = SGDSaI(model.parameters(), 0.5, foreach=True, eps=1e-3).state_dict()
    optimizer = SGDSaI(model.parameters(), foreach=False)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["foreach"]) == (0.5, 1e-3, False)


def test_hooks_see_the_state_dict_and_the_loaded_state():
    model = nn.Linear(3, 2)
    optimizer = SGDSaI(model.parameters())
    seen = []
    optimizer.register_load_state_dict_pre_hook(
        lambda _, loaded: seen.append(loaded["state"][0]["gsnr"].item())
    )
    optimizer.register_load_state_dict_post_hook(
        lambda loaded: seen.append(loaded.state[model.weight]["scale"].item())
    )
    optimizer.load_state_dict(authors_state_dict(model))
    assert seen == [2.0, 2.0]


def test_a_state_dict_of_another_shape_is_refused_and_leaves_the_state():
    model = nn.Linear(3, 2)
    optimizer = SGDSaI(model.parameters())
    other = SGDSaI([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state


def state_of(shape, steps=1, **options):
    """The state_dict of a parameter of that shape after some steps."""
    param = nn.Parameter(torch.zeros(shape))
    optimizer = SGDSaI([param], **options)
    for _ in range(steps):
        param.grad = torch.randn(shape)
        optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("state_dtype", [None, torch.int8, "int4"])
def test_state_of_another_shape_is_refused_before_anything_changes(state_dtype):
    param = nn.Parameter(torch.zeros(120, 64))
    optimizer = SGDSaI([param], 0.5, state_dtype=state_dtype)
    param.grad = torch.randn(120, 64)
    optimizer.step()
    held = copy.deepcopy(optimizer.state_dict())
    saved = state_of((100, 64), state_dtype=state_dtype)
    with pytest.raises(ValueError, match=r"momentum_buffer must be .* \(120, \d+\).*"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5
    for key, value in optimizer.state[param].items():
        assert torch.equal(value, held["state"][0][key])
    optimizer.step()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("momentum_scale", torch.ones(64, 3, dtype=torch.bfloat16)),
        ("momentum_scale", torch.ones(64, 2)),
        ("momentum_scale", None),
        ("scale", torch.ones(2)),
        ("scale", torch.ones((), dtype=torch.bfloat16)),
        ("rounding_seed", torch.ones(())),
    ],
)
def test_a_tensor_of_another_form_is_refused(key, value):
    saved = state_of((64, 64), state_dtype=torch.int8)
    saved["state"][0][key] = value
    with pytest.raises(ValueError, match=f"must fit the parameters: {key} must be"):
        SGDSaI([nn.Parameter(torch.zeros(64, 64))]).load_state_dict(saved)


def test_codes_of_a_study_load_under_the_same_codes_only():
    param = nn.Parameter(torch.zeros(64, 64))
    with using(Code(8, group_size=16)):
        saved = state_of((64, 64), state_dtype=torch.int8)
        SGDSaI([param]).load_state_dict(saved)
    with pytest.raises(ValueError, match="momentum_scale must be"):
        SGDSaI([param]).load_state_dict(saved)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (lambda params: torch.optim.SGD(params, momentum=0.9), "momentum_buffer"),
        (torch.optim.AdamW, "step, exp_avg, exp_avg_sq"),
    ],
    ids=["SGD", "AdamW"],
)
def test_the_state_of_another_optimizer_is_refused_before_anything_changes(kind, keys):
    model = nn.Linear(3, 2)
    ours, other = SGDSaI(model.parameters(), 0.5), kind(model.parameters())
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    ours.step()
    other.step()
    held = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=f"SGD_sai, got an entry with {keys}"):
        ours.load_state_dict(other.state_dict())
    assert ours.param_groups[0]["lr"] == 0.5
    for index, param in enumerate(model.parameters()):
        for key, value in ours.state[param].items():
            assert torch.equal(value, held["state"][index][key])


def test_empty_entries_are_dropped_and_those_of_no_parameter_are_carried():
    model = nn.Linear(3, 2)
    saved = authors_state_dict(model)
    saved["state"][1] = {}
    saved["state"][7] = saved["state"][0]
    optimizer = SGDSaI(model.parameters())
    optimizer.load_state_dict(saved)
    assert set(optimizer.state) == {model.weight, 7}
    assert optimizer.state[7] is saved["state"][7]
    assert get_scales(optimizer, model) == {"weight": 2.0, "bias": 0.0}


def test_state_that_a_wrapper_puts_in_place_is_read() -> None:
    saved, loaded = (
        SGDSaI([nn.Parameter(torch.ones(64))], lr=0.1, weight_decay=0.0)
        for _ in range(2)
    )
    [[param]] = (group["params"] for group in saved.param_groups)
    param.grad = torch.zeros(64)
    saved.step()
    # As ZeroRedundancyOptimizer does: no load_state_dict of ours is called.
    [[other]] = (group["params"] for group in loaded.param_groups)
    loaded.state[other] = {k: v.clone() for k, v in saved.state[param].items()}
    grad = torch.randn(64)
    for optimizer, p in ((saved, param), (loaded, other)):
        p.grad = grad.clone()
        optimizer.step()
    assert loaded.state[other]["scale"] > 0
    assert torch.equal(param, other)


def test_a_buffer_of_another_shape_that_is_put_in_place_is_refused() -> None:
    param = nn.Parameter(torch.ones(64))
    optimizer = SGDSaI([param], lr=0.1)
    param.grad = torch.randn(64)
    optimizer.step()
    optimizer.state[param]["momentum_buffer"] = torch.zeros(32)
    with pytest.raises(RuntimeError, match=r"momentum_buffer must be .* \(64,\)"):
        optimizer.step()


# A matrix with a last group that is not full, a convolution, and what is never coded.
SHAPES = [(65, 70), (64, 5, 5, 5), (5000,), (3, 4), ()]
# As saved: the dtype of the parameters, and the state dtype that was asked for.
SAVED = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float64": (torch.float64, None),
    "float16": (torch.float16, None),
    "int8": (torch.float32, torch.int8),
    "int4": (torch.bfloat16, "int4"),
}
ASKED = ["float32", "bfloat16", "int8", "int4"]
EXECUTIONS = pytest.mark.parametrize(
    "execution",
    [{}, {"fused": False}, {"foreach": True}],
    ids=["chosen", "reference", "foreach"],
)


def trained(dtype=torch.float32, steps=3, shapes=SHAPES, **options):
    """Parameters of several shapes and their optimizer, after some steps."""
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = SGDSaI(params, 1e-3, **options)
    step_on(params, optimizer, steps)
    return params, optimizer


def step_on(params, optimizer, steps, first=0, one_by_one=False):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            grad = torch.randn(param.shape, generator=generator)
            param.grad = grad.to(param.dtype)
        if one_by_one:
            for i, param in enumerate(params):
                optimizer.step_parameter(param, optimizer.param_groups[0], i)
        else:
            optimizer.step()


def momentum_of(entry, param):
    """The values that a state's momentum stands for, in float64."""
    buffer = entry["momentum_buffer"]
    if "momentum_scale" in entry:
        codes = buffer.reshape(len(param), -1)
        cols, noise = param[0].numel(), None
        if "rounding_seed" in entry:
            noise = dither_bits(0, param.numel(), entry["rounding_seed"])
            noise = noise.view(len(param), cols)
        values = dequantize(codes, entry["momentum_scale"], cols, noise)
        buffer = values.view(param.shape)
    return buffer.double()


def assert_nearest(entry, param, values):
    """What a momentum stands for is as near to values as its form allows."""
    buffer, error = entry["momentum_buffer"], momentum_of(entry, param) - values
    if "momentum_scale" not in entry:
        assert torch.equal(buffer, values.to(buffer.dtype))
        return
    scales = entry["momentum_scale"].double().abs().repeat_interleave(32, dim=1)
    spacing = scales[:, : param[0].numel()].reshape(param.shape)
    # Levels are found in float32.
    assert (error.abs() <= 0.5001 * spacing).all()


def assert_is_of(entry, param, state_dtype):
    """A state has the form of one that was made with a state dtype."""
    made = SGDSaI([nn.Parameter(torch.zeros_like(param))], state_dtype=state_dtype)
    made.step()
    [[expected]] = [made.state.values()]
    assert entry.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (entry[key].dtype, entry[key].shape) == (tensor.dtype, tensor.shape)
        assert entry[key].stride() == tensor.stride()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("saved", SAVED)
def test_a_state_is_converted_to_the_dtype_that_was_asked_for(saved, asked):
    dtype, state_dtype = SAVED[saved]
    params, optimizer = trained(dtype, state_dtype=state_dtype)
    others = copy.deepcopy(params)
    loaded = SGDSaI(others, state_dtype=asked)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["state_dtype"] == asked
    for param, other in zip(params, others, strict=True):
        held, entry = optimizer.state[param], loaded.state[other]
        assert torch.equal(held["scale"], entry["scale"])
        assert_nearest(entry, other, momentum_of(held, param))
    step_on(others, loaded, 1, first=3)
    for other in others:
        assert_is_of(loaded.state[other], other, asked)
        assert other.isfinite().all()


@pytest.mark.parametrize("asked", ASKED)
def test_a_state_of_the_dtype_that_was_asked_for_loads_bit_for_bit(asked):
    params, optimizer = trained(state_dtype=asked)
    others = copy.deepcopy(params)
    loaded = SGDSaI(others, state_dtype=asked)
    loaded.load_state_dict(optimizer.state_dict())
    for each in ((params, optimizer), (others, loaded)):
        step_on(*each, 3, first=3)
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param, other)
        for key, tensor in optimizer.state[param].items():
            assert torch.equal(tensor, loaded.state[other][key])


@pytest.mark.parametrize("saved", SAVED)
def test_a_state_keeps_its_dtype_where_none_was_asked_for(saved):
    dtype, state_dtype = SAVED[saved]
    params, optimizer = trained(dtype, state_dtype=state_dtype)
    others = [nn.Parameter(torch.zeros(p.shape)) for p in params]
    loaded = SGDSaI(others)
    loaded.load_state_dict(optimizer.state_dict())
    [group], [saved_group] = loaded.param_groups, optimizer.param_groups
    assert group["state_dtype"] == saved_group["state_dtype"]
    step_on(others, loaded, 1)
    for param, other in zip(params, others, strict=True):
        held = optimizer.state[param]["momentum_buffer"]
        assert loaded.state[other]["momentum_buffer"].dtype == held.dtype
        rounds = held.dtype in (torch.bfloat16, torch.int8, torch.uint8)
        assert rounds <= ("rounding_seed" in loaded.state[other])


@EXECUTIONS
@pytest.mark.parametrize("asked", ["bfloat16", "int8"])
def test_a_run_goes_on_in_fewer_bits_as_it_would_have(asked, execution):
    params, optimizer = trained(steps=10)
    starts, others = copy.deepcopy(params), copy.deepcopy(params)
    narrow = SGDSaI(others, state_dtype=asked, **execution)
    narrow.load_state_dict(optimizer.state_dict())
    step_on(params, optimizer, 10, first=10)
    step_on(others, narrow, 10, first=10)
    for start, exact, other in zip(starts, params, others, strict=True):
        assert (other - exact).norm() < 0.02 * (exact - start).norm()


def test_each_group_gets_the_dtype_that_it_asked_for():
    shape = (64, 64)
    params, optimizer = trained(shapes=[shape] * 3)
    saved = optimizer.state_dict()
    [group] = saved["param_groups"]
    saved["param_groups"] = [{**group, "params": [i]} for i in range(3)]
    groups = [
        {"params": [params[0]]},
        {"params": [params[1]], "state_dtype": "int4"},
        {"params": [params[2]], "state_dtype": torch.bfloat16},
    ]
    loaded = SGDSaI(groups)
    loaded.load_state_dict(saved)
    dtypes = [loaded.state[p]["momentum_buffer"].dtype for p in params]
    assert dtypes == [torch.float32, torch.uint8, torch.bfloat16]


def test_the_authors_state_is_converted():
    model = nn.Linear(64, 64)
    saved = authors_state_dict(model)
    optimizer = SGDSaI(model.parameters(), state_dtype=torch.int8)
    optimizer.load_state_dict(saved)
    entry = optimizer.state[model.weight]
    values = saved["state"][0]["momentum_buffer"].double()
    assert_nearest(entry, model.weight, values)
    assert entry["momentum_buffer"].dtype == torch.int8
    assert optimizer.state[model.bias]["momentum_buffer"].dtype == torch.float32


def test_a_momentum_that_has_not_begun_is_converted():
    param = nn.Parameter(torch.ones(64, 64))
    optimizer = SGDSaI([param], stochastic_rounding=False)
    optimizer.step()
    loaded = SGDSaI([param], state_dtype="int4")
    loaded.load_state_dict(optimizer.state_dict())
    grad = torch.randn(64, 64)
    param.grad = grad.clone()
    loaded.step()
    assert_nearest(loaded.state[param], param, grad.double())


def test_a_state_that_was_kept_without_momentum_needs_no_conversion():
    param = nn.Parameter(torch.ones(64, 64))
    optimizer = SGDSaI([param], momentum=0.0)
    step_on([param], optimizer, 1)
    loaded = SGDSaI([param], state_dtype="int4")
    loaded.load_state_dict(optimizer.state_dict())
    step_on([param], loaded, 1)
    assert loaded.state[param].keys() == {"scale"}


def test_a_large_state_is_converted_a_block_at_a_time():
    """And a block a few rows at a time: copies in float32 stay small."""
    params, optimizer = trained(shapes=[(3000, 1000)] * 8, steps=1)
    saved = optimizer.state_dict()
    loaded = SGDSaI(params, state_dtype=torch.int8)
    peak = peak_bytes(lambda: loaded.load_state_dict(saved))
    # All in 8 bits, and one in 32 with copies of a few of its rows.
    assert peak < 8 * 3e6 * 1.07 + 4 * 3e6 + 40 * 2**20 < 8 * 3e6 * 4
    for param in params:
        entry, held = loaded.state[param], optimizer.state[param]
        assert_nearest(entry, param, held["momentum_buffer"].double())


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


@pytest.mark.parametrize("one_by_one", [False, True], ids=["step", "step_parameter"])
@pytest.mark.parametrize("before", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("after", ["float32", torch.bfloat16, torch.int8, "int4"])
def test_an_option_that_changes_converts_the_momentum(before, after, one_by_one):
    params, optimizer = trained(state_dtype=before, weight_decay=0.0)
    held = [momentum_of(optimizer.state[p], p) for p in params]
    [group] = optimizer.param_groups
    group.update(state_dtype=after, lr=0.0, momentum=1 - 2**-53)
    step_on(params, optimizer, 1, one_by_one=one_by_one)
    for param, values in zip(params, held, strict=True):
        entry = optimizer.state[param]
        assert_is_of(entry, param, after)
        error = (momentum_of(entry, param) - values).norm() / values.norm()
        is_coded = "momentum_scale" in entry
        limit = {"int4": 0.4, torch.int8: 0.03, torch.bfloat16: 0.01}.get(after, 1e-6)
        assert error < (limit if is_coded or after is torch.bfloat16 else 1e-6)


def test_what_is_loaded_and_what_is_set_become_the_same():
    params, optimizer = trained()
    others = copy.deepcopy(params)
    loaded = SGDSaI(others, state_dtype="int4")
    loaded.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["state_dtype"] = "int4"
    for each in ((params, optimizer), (others, loaded)):
        step_on(*each, 2, first=3)
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param, other)
        for key, tensor in optimizer.state[param].items():
            assert torch.equal(tensor, loaded.state[other][key])


def test_a_state_that_a_wrapper_puts_in_place_is_converted():
    # As ZeroRedundancyOptimizer does: no load_state_dict of ours is called.
    params, optimizer = trained()
    others = copy.deepcopy(params)
    placed = SGDSaI(others, state_dtype="int8", lr=0.0)
    step_on(others, placed, 1)
    for param, other in zip(params, others, strict=True):
        held = {k: v.clone() for k, v in optimizer.state[param].items()}
        placed.state[other] = held
    step_on(others, placed, 1)
    for other in others:
        assert_is_of(placed.state[other], other, "int8")


def test_an_option_that_is_taken_back_keeps_the_momentum():
    params, optimizer = trained(state_dtype=torch.int8)
    optimizer.param_groups[0]["state_dtype"] = None
    step_on(params, optimizer, 1, first=3)
    assert optimizer.state[params[0]]["momentum_buffer"].dtype == torch.int8


def test_a_seed_that_is_not_needed_is_dropped_and_comes_back():
    params, optimizer = trained(state_dtype=torch.int8, shapes=[(64, 64)])
    [group], entry = optimizer.param_groups, optimizer.state[params[0]]
    for state_dtype, has_one in (("float32", False), ("int4", True)):
        group["state_dtype"] = state_dtype
        step_on(params, optimizer, 1)
        assert ("rounding_seed" in entry) == has_one


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_that_is_made_before_the_conversion_goes_on_alike(how):
    params, optimizer = trained()
    optimizer.param_groups[0]["state_dtype"] = torch.bfloat16
    pair = (params, optimizer)
    copied = pickle.loads(pickle.dumps(pair)) if how == "pickle" else None
    others, twin = copied or copy.deepcopy(pair)
    for each in (pair, (others, twin)):
        step_on(*each, 2, first=3)
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param, other)


def saved_and_read(folder, model, optimizer, other, loading):
    """Save with torch's distributed checkpoint, and load."""
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    weights, state = get_state_dict(other, loading)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(
        other,
        loading,
        model_state_dict=held["model"],
        optim_state_dict=held["optimizer"],
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("asked", [None, "float32"])
def test_codes_that_were_read_as_values_are_refused(tmp_path, asked):
    models = [nn.Linear(64, 64) for _ in range(2)]
    optimizer = SGDSaI(models[0].parameters(), state_dtype=torch.int8)
    loading = SGDSaI(models[1].parameters(), 0.5, state_dtype=asked)
    step_on(list(models[0].parameters()), optimizer, 2)
    with pytest.raises(ValueError, match="must have codes with their scales"):
        saved_and_read(tmp_path, models[0], optimizer, models[1], loading)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_distributed_checkpoint_is_converted_where_its_form_allows(tmp_path):
    models = [nn.Linear(64, 64) for _ in range(2)]
    optimizer = SGDSaI(models[0].parameters(), state_dtype=torch.bfloat16)
    loading = SGDSaI(models[1].parameters())
    step_on(list(models[0].parameters()), optimizer, 2)
    saved_and_read(tmp_path, models[0], optimizer, models[1], loading)
    for param, other in zip(*(m.parameters() for m in models), strict=True):
        held, entry = optimizer.state[param], loading.state[other]
        assert torch.equal(held["momentum_buffer"], entry["momentum_buffer"])
        assert entry["momentum_buffer"].dtype == torch.bfloat16


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def step_layout(params, optimizer, steps):
    for _ in range(steps):
        for i, param in enumerate(params):
            generator = torch.Generator().manual_seed(i)
            grad = torch.randn(param.shape, generator=generator)
            param.grad = param.detach().clone()
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements)
            param.grad.copy_(grad)
        optimizer.step()


def convert_layout(name, hidden, first, second):
    """Convert what is sharded, and what it is converted from as one process would."""
    torch.manual_seed(0)
    params = list(LAYOUTS[name].spread(Net(64, hidden)).parameters())
    optimizer = SGDSaI(params, 1e-3, state_dtype=first)
    step_layout(params, optimizer, 2)
    loaded = SGDSaI(params, 1e-3, state_dtype=second)
    loaded.load_state_dict(optimizer.state_dict())
    coded = 0
    for param in params:
        shape = torch.empty(param.shape)
        states = [
            {key: whole(t) for key, t in o.state[param].items()}
            for o in (optimizer, loaded)
        ]
        if isinstance(param, DTensor):
            placements = loaded.state[param]["momentum_buffer"].placements
            assert placements == param.placements
        values = momentum_of(states[0], shape)
        assert_nearest(states[1], shape, values)
        if "momentum_scale" in states[1]:
            coded += 1
            matrix = values.float().reshape(len(shape), -1)
            codes, scales = quantize(matrix, states[1]["momentum_buffer"].dtype, None)
            assert torch.equal(states[1]["momentum_buffer"].view_as(codes), codes)
            assert torch.equal(states[1]["momentum_scale"], scales)
    step_layout(params, loaded, 1)
    assert all(whole(p).isfinite().all() for p in params)
    return coded


@pytest.mark.parametrize(
    ("first", "second"),
    [(None, "int8"), (None, "int4"), ("int8", "float32"), ("int4", "int8")],
)
@pytest.mark.parametrize(
    ("name", "hidden", "coded"),
    [
        ("DDP", 128, 2),
        ("FSDP2", 129, 2),
        ("FSDP2, empty shards", 65, 2),
        ("FSDP2, CPU offload", 128, 2),
        ("HSDP", 65, 2),
        ("TP", 128, 2),
        # Half of 96 columns are no whole groups.
        ("TP", 96, 1),
        ("FSDP2 + TP", 128, 2),
    ],
)
def test_a_state_is_converted_on_every_layout(
    workers, name, hidden, coded, first, second
):
    world = LAYOUTS[name].world
    found = workers.run(world, convert_layout, name, hidden, first, second)
    assert found == [coded if second in {"int8", "int4"} else 0] * world


def load_codes_elsewhere(loads_whole):
    """Load codes of whole rows where ranks have parts of rows."""
    torch.manual_seed(0)
    first = LAYOUTS["FSDP2"].spread(Net(64, 96))
    optimizer = SGDSaI(first.parameters(), state_dtype="int8")
    step_layout(list(first.parameters()), optimizer, 2)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    _, state = get_state_dict(first, optimizer, options=options)
    model = LAYOUTS["TP"].spread(Net(64, 96))
    loading = SGDSaI(model.parameters(), state_dtype="int8")
    try:
        if loads_whole:
            set_optimizer_state_dict(model, loading, state, options=options)
        else:
            loading.load_state_dict(cut_rows(optimizer, model))
    except ValueError as error:
        return str(error)
    return "loads"


def cut_rows(optimizer, model):
    """The state_dict of an optimizer, cut as a model's parameters are."""
    saved = optimizer.state_dict()
    for i, param in enumerate(model.parameters()):
        entry = saved["state"][i]
        for key, tensor in entry.items():
            entry[key] = whole(tensor)
            if isinstance(param, DTensor) and key.startswith("momentum"):
                entry[key] = distribute_tensor(
                    entry[key], param.device_mesh, param.placements
                )
    return saved


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("loads_whole", "sentence"),
    [
        (True, "must have codes with their scales, got codes that were read as"),
        (False, "momentum_buffer must hold whole groups of codes on every rank"),
    ],
)
def test_codes_are_refused_where_ranks_cut_their_groups(workers, loads_whole, sentence):
    for refusal in workers.run(2, load_codes_elsewhere, loads_whole):
        assert sentence in refusal


def convert_slices(asked, is_set_later):
    """Return what FSDP1's slices are converted to, or the refusal."""
    torch.manual_seed(0)
    model = LAYOUTS["FSDP1, original parameters"].spread(Net(64, 128))
    params = list(model.parameters())
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = SGDSaI(params)
    optimizer.step()
    loaded = SGDSaI(params, 0.5, state_dtype=None if is_set_later else asked)
    before = [p.detach().clone() for p in params]
    try:
        loaded.load_state_dict(optimizer.state_dict())
        if is_set_later:
            loaded.param_groups[0]["state_dtype"] = asked
            loaded.param_groups[0]["lr"] = 0.5
        loaded.step()
    except RuntimeError as error:
        assert all(map(torch.equal, before, params))
        assert loaded.param_groups[0]["lr"] == 0.5
        assert is_set_later or not loaded.state
        return str(error)
    return {e["momentum_buffer"].dtype for e in loaded.state.values()}


@pytest.mark.parametrize("is_set_later", [False, True])
def test_fsdp1s_slices_are_converted_to_dtypes_and_not_to_codes(workers, is_set_later):
    for asked in ("int8", "int4"):
        for refusal in workers.run(2, convert_slices, asked, is_set_later):
            assert "FullyShardedDataParallel, whose slices have no rows" in refusal
    for dtypes in workers.run(2, convert_slices, "bfloat16", is_set_later):
        assert dtypes == {torch.bfloat16}


# Names


def named(names, **options):
    """An optimizer of equal parameters with these names, after a step of its own."""
    params = [nn.Parameter(torch.ones(4)) for _ in names]
    optimizer = SGDSaI(zip(names, params, strict=True), **options)
    for i, param in enumerate(params):
        param.grad = torch.randn(4, generator=torch.Generator().manual_seed(i))
    optimizer.step()
    return optimizer


def in_groups(*groups):
    """The same with several groups."""
    pairs = [[(name, nn.Parameter(torch.ones(4))) for name in g] for g in groups]
    return SGDSaI([{"params": group} for group in pairs])


@pytest.mark.parametrize(
    ("saved", "held", "sentence"),
    [
        ([["a", "b"]], [["b", "a"]], "got 'a' as parameter 0 of group 0, .* 'b' here"),
        ([["a", "b", "c"]], [["a", "c", "b"]], "got 'b' as parameter 1 of group 0"),
        ([["a"], ["b"]], [["b"], ["a"]], "got 'a' as parameter 0 of group 0"),
        ([["a", "b"], ["c"]], [["a", "c"], ["b"]], "'b' as parameter 1 of group 0"),
        # One name that moved is enough, whatever the others are.
        ([["x", "a"]], [["a", "y"]], "got 'a' as parameter 1 of group 0"),
        ([["module.a", "b"]], [["b", "_orig_mod.a"]], "got 'a' as parameter 0"),
    ],
)
def test_parameters_in_other_places_are_refused(saved, held, sentence):
    optimizer = in_groups(*held)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match=sentence):
        optimizer.load_state_dict(in_groups(*saved).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_momenta_of_equal_shapes_are_not_exchanged():
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    old = SGDSaI(net.named_parameters())
    net(torch.randn(4, 64)).square().mean().backward()
    old.step()
    new = SGDSaI(reversed(list(net.named_parameters())))
    with pytest.raises(ValueError, match="in the optimizer's order and groups"):
        new.load_state_dict(old.state_dict())
    assert not new.state


@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}",
        "_orig_mod.{}",
        "_orig_mod.module.{}",
        "_fsdp_wrapped_module.{}",
        "module._fsdp_wrapped_module.{}",
        "_checkpoint_wrapped_module.{}",
    ],
)
@pytest.mark.parametrize("is_saved_so", [False, True])
def test_what_wrappers_put_into_names_is_not_compared(wrap, is_saved_so):
    names = ["0.weight", "0.bias", "1.weight"]
    wrapped = [wrap.format(name) for name in names]
    saved, held = (wrapped, names) if is_saved_so else (names, wrapped)
    optimizer = named(held)
    optimizer.load_state_dict(named(saved).state_dict())
    assert optimizer.param_groups[0]["param_names"] == held
    with pytest.raises(ValueError, match="order and groups"):
        optimizer.load_state_dict(named(saved[::-1]).state_dict())


@pytest.mark.parametrize(
    ("saved", "held"),
    [
        (["a", "b"], ["c", "d"]),
        (["encoder.a", "encoder.b"], ["model.encoder.b", "model.encoder.a"]),
        (["a", "b"], ["a", "renamed"]),
        # A model's own word, which is no wrapper's here.
        (["x.module.w", "x.w"], ["x.module.w", "x.w"]),
    ],
)
def test_other_names_are_not_compared(saved, held):
    optimizer = named(held)
    optimizer.load_state_dict(named(saved).state_dict())
    assert optimizer.param_groups[0]["param_names"] == held


def test_names_that_only_one_side_has_are_not_compared():
    nameless = SGDSaI([nn.Parameter(torch.ones(4)) for _ in range(2)])
    optimizer = named(["a", "b"])
    optimizer.load_state_dict(nameless.state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["a", "b"]
    nameless.load_state_dict(named(["b", "a"]).state_dict())


def by_name(optimizer, loaded):
    """Bring a state_dict into the optimizer's order, as torch's recipes do."""
    adapted = copy.deepcopy(optimizer.state_dict())
    pairs = zip(adapted["param_groups"], loaded["param_groups"], strict=True)
    for group, other in pairs:
        names = other["param_names"]
        kept = {k: v for k, v in other.items() if k not in {"params", "param_names"}}
        group.update(kept)
        for index, name in zip(group["params"], group["param_names"], strict=True):
            saved = other["params"][names.index(name)]
            adapted["state"][index] = copy.deepcopy(loaded["state"][saved])
    return adapted


def test_a_hook_may_bring_a_state_dict_into_order():
    saved, optimizer = named(["a", "b"]), named(["b", "a"])
    optimizer.register_load_state_dict_pre_hook(by_name)
    optimizer.load_state_dict(saved.state_dict())
    [old], [new] = saved.param_groups, optimizer.param_groups
    for i, j in ((0, 1), (1, 0)):
        pair = saved.state[old["params"][i]], optimizer.state[new["params"][j]]
        assert torch.equal(*(entry["momentum_buffer"] for entry in pair))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_distributed_checkpoint_finds_parameters_by_name(tmp_path):
    models = [nn.Linear(4, 4) for _ in range(2)]
    optimizer = SGDSaI(models[0].named_parameters())
    loading = SGDSaI(reversed(list(models[1].named_parameters())))
    step_on(list(models[0].parameters()), optimizer, 2)
    saved_and_read(tmp_path, models[0], optimizer, models[1], loading)
    assert loading.param_groups[0]["param_names"] == ["bias", "weight"]
    for param, other in zip(*(m.parameters() for m in models), strict=True):
        buffers = (o.state[p] for o, p in ((optimizer, param), (loading, other)))
        assert torch.equal(*(entry["momentum_buffer"] for entry in buffers))


# Options of others


TORCHS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "LBFGS",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SparseAdam",
]


@pytest.mark.parametrize("name", TORCHS)
def test_another_optimizers_options_are_refused_before_its_first_step(name):
    param = nn.Parameter(torch.ones(3, 2))
    other = getattr(torch.optim, name)([param], lr=0.1)
    optimizer = SGDSaI([param], 0.5)
    held = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"of the authors' SGD_sai, got an? "):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict() == held


def test_the_authors_options_load_before_the_first_step():
    optimizer = SGDSaI([nn.Parameter(torch.ones(3))], 0.5, weight_decay=0.0)
    options = {"lr": 0.25, "momentum": 0.8, "eps": 1e-6, "weight_decay": 0.125}
    saved = [{**options, "initial_lr": 1.0, "name": "mine", "params": [0]}]
    optimizer.load_state_dict({"state": {}, "param_groups": saved})
    [group] = optimizer.param_groups
    assert {key: group[key] for key in options} == options
    assert (group["initial_lr"], group["name"]) == (1.0, "mine")


def test_a_group_may_have_keys_of_the_users_own():
    param = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([{"params": [param], "betas": "my own"}])
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["betas"] == "my own"


@pytest.mark.parametrize(
    ("key", "value"), [("lr", "1e-3"), ("momentum", 1.5), ("scaling", "snr")]
)
def test_options_that_do_not_exist_are_refused_before_anything_changes(key, value):
    optimizer = SGDSaI([nn.Parameter(torch.ones(3))], 0.5)
    step_on(optimizer.param_groups[0]["params"], optimizer, 1)
    held = copy.deepcopy(optimizer.state_dict())
    saved = copy.deepcopy(held)
    saved["param_groups"][0].update({"weight_decay": 0.5, key: value})
    with pytest.raises((TypeError, ValueError), match=f"{key} must be"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == held["param_groups"]
