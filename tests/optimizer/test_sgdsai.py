import copy
import gc
import weakref

import pytest
import torch
from exactness import (
    EXECUTIONS,
    FINER,
    PUBLISHED,
    largest_differences,
    largest_finer_difference,
)
from models import TinyTransformer, next_token_loss, token_batches
from resuming import resumed
from torch import nn

from saiopt import SGDSaI, get_scales, set_scales
from saiopt.optimizer import calibration, state
from saiopt.scaling import RULES

EXECUTION_OPTIONS = pytest.mark.parametrize(
    "execution", EXECUTIONS.values(), ids=EXECUTIONS
)


def train(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()


def tiny(dtype=torch.float32):
    torch.manual_seed(0)
    return TinyTransformer().to(dtype)


def same_bits(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def block(values, grad=None, dtype=torch.float32):
    param = nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())
    if grad is not None:
        param.grad = torch.as_tensor(grad, dtype=dtype).clone()
    return param


def groups_of(model, scaling):
    """What is no matrix is factored under "orthogonal"."""
    return [
        {
            "params": [p],
            "scaling": "factored"
            if p.dim() < 2 and scaling == "orthogonal"
            else scaling,
        }
        for p in model.parameters()
    ]


# The rule


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("scaling", FINER)
def test_finer_rules_follow_their_float64_oracle_over_50_steps(scaling, execution):
    assert largest_finer_difference(scaling, execution, steps=50) < 4e-6


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("scaling", PUBLISHED)
def test_float32_follows_the_float64_oracle_over_50_steps(scaling, execution):
    params, scales = largest_differences(scaling, execution, steps=50)
    assert params < 3e-6
    assert scales < 1.2e-7


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_float64_equals_the_oracle_to_the_rounding_of_its_scale(execution):
    params, _ = largest_differences("gsnr", execution, steps=20, dtype=torch.float64)
    assert params < 3e-7


@EXECUTION_OPTIONS
@pytest.mark.parametrize("maximize", [False, True])
def test_unscaled_and_undecayed_it_is_torch_sgd_with_damped_momentum(
    execution, maximize
):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "maximize": maximize}
    ours, theirs = tiny(torch.float64), tiny(torch.float64)
    optimizer = SGDSaI(ours.parameters(), scaling="none", **options, **execution)
    reference = torch.optim.SGD(theirs.parameters(), dampening=0.9, **options)
    train(ours, optimizer, token_batches(20))
    train(theirs, reference, token_batches(20))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        sign = -1 if maximize else 1
        torch.testing.assert_close(
            optimizer.state[p]["momentum_buffer"],
            sign * reference.state[q]["momentum_buffer"],
            rtol=1e-12,
            atol=1e-14,
        )


@EXECUTION_OPTIONS
def test_gsnr_max_is_gsnr_with_the_rates_of_algorithm_1(execution):
    plain, divided = tiny(torch.float64), tiny(torch.float64)
    batches = token_batches(10)
    released = SGDSaI(plain.parameters(), 1e-3, weight_decay=0.1, **execution)
    train(plain, released, batches[:1])
    largest = max(get_scales(released, plain).values())
    train(plain, released, batches[1:])
    algorithm_1 = SGDSaI(
        divided.parameters(),
        1e-3 * largest,
        weight_decay=0.1 / largest,
        scaling="gsnr_max",
        **execution,
    )
    train(divided, algorithm_1, batches)
    for p, q in zip(plain.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    assert max(get_scales(algorithm_1, divided).values()) == 1


def test_gsnr_max_divides_late_blocks_by_the_first_calibrations_largest():
    first, late = block([1.0] * 9, range(9)), block([1.0] * 100)
    optimizer = SGDSaI([first, late], scaling="gsnr_max")
    optimizer.step()
    resumed = copy.deepcopy(optimizer)
    for each in (optimizer, resumed):
        late = each.param_groups[0]["params"][1]
        late.grad = torch.linspace(-1, 1, 100)
        each.step()
        ours = SGDSaI([block([1.0] * 9, range(9)), block([1.0] * 100, late.grad)])
        ours.step()
        scales = [s["scale"].item() for s in ours.state.values()]
        expected = pytest.approx(scales[1] / scales[0])
        assert each.state[late]["scale"].item() == expected


@pytest.mark.parametrize("how", ["add_param_group", "assignment"])
def test_a_late_group_takes_gsnr_maxs_divisor_as_it_is(how):
    first, late = block([1.0] * 9, range(9)), block([1.0] * 100)
    optimizer = SGDSaI([first], scaling="gsnr_max")
    if how == "assignment":
        optimizer.add_param_group({"params": [late], "scaling": "gsnr"})
    optimizer.step()
    largest = optimizer.param_groups[0]["gsnr_max"]
    if how == "assignment":
        optimizer.param_groups[1]["scaling"] = "gsnr_max"
    else:
        optimizer.add_param_group({"params": [late]})
    late.grad = torch.linspace(-1, 1, 100)
    optimizer.step()
    assert [g["gsnr_max"] for g in optimizer.param_groups] == [largest, largest]
    undivided = (late.grad.norm() / late.grad.std()).item()
    assert undivided > largest
    held = optimizer.state[late]["scale"].item()
    assert held == pytest.approx(undivided / largest)


def test_gsnr_max_may_be_asked_of_a_live_group():
    first, late = block([1.0] * 9, range(9)), block([1.0] * 100)
    optimizer = SGDSaI([first, late])
    optimizer.step()
    scale = optimizer.state[first]["scale"].clone()
    optimizer.param_groups[0]["scaling"] = "gsnr_max"
    optimizer.step()
    late.grad = torch.linspace(-1, 1, 100)
    optimizer.step()
    assert optimizer.state[late]["scale"] == 1
    assert torch.equal(optimizer.state[first]["scale"], scale)


@EXECUTION_OPTIONS
def test_a_tensor_learning_rate_gives_the_same_steps(execution):
    with_float, with_tensor = tiny(torch.float64), tiny(torch.float64)
    lr = torch.tensor([1e-3], dtype=torch.float64)
    train(
        with_float, SGDSaI(with_float.parameters(), 1e-3, **execution), token_batches(5)
    )
    train(
        with_tensor, SGDSaI(with_tensor.parameters(), lr, **execution), token_batches(5)
    )
    for p, q in zip(with_float.parameters(), with_tensor.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)


@EXECUTION_OPTIONS
def test_a_tensor_learning_rate_may_change_in_place(execution):
    lr = torch.tensor(0.0)
    param = block([1.0, 2.0], [1.0, 3.0])
    optimizer = SGDSaI([param], lr, **execution)
    optimizer.step()
    assert torch.equal(param, torch.tensor([1.0, 2.0]))
    lr.fill_(0.1)
    optimizer.step()
    assert (param < torch.tensor([1.0, 2.0])).all()


@EXECUTION_OPTIONS
def test_executions_agree_where_a_group_mixes_dtypes_and_momentum(execution):
    params = [
        block([1.0, 2.0, 3.0], [1.0, 0.0, -1.0]),
        block([1.0, 2.0, 3.0], [1.0, 0.0, -1.0], torch.bfloat16),
        block([1.0, 2.0, 3.0], [1.0, 0.0, -1.0], torch.float64),
        block([1.0, 2.0, 3.0]),
    ]
    optimizer = SGDSaI(params, 0.1, stochastic_rounding=False, **execution)
    for _ in range(3):
        optimizer.step()
    for dtype_param in params[1:3]:
        tolerance = 2e-2 if dtype_param.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(
            dtype_param.float(), params[0], rtol=tolerance, atol=tolerance
        )
    assert torch.equal(params[3], torch.tensor([1.0, 2.0, 3.0]))


def test_the_step_reads_strided_gradients_entry_by_entry():
    weights, grad = torch.randn(4, 6), torch.randn(6, 4)
    plain, strided = block(weights, grad.t().contiguous()), block(weights)
    strided.grad = grad.t()
    for param in (plain, strided):
        SGDSaI([param]).step()
    torch.testing.assert_close(plain, strided, rtol=1e-6, atol=1e-7)


def test_gradients_are_never_changed():
    param = block([1.0, 2.0], [3.0, 5.0])
    for options in ({}, {"maximize": True}, {"momentum": 0.0}, {"foreach": True}):
        optimizer = SGDSaI([param], **options)
        optimizer.step()
        optimizer.step()
        assert torch.equal(param.grad, torch.tensor([3.0, 5.0]))


# Groups


def test_groups_have_their_own_options_and_may_be_empty():
    fast, slow = block([1.0, 2.0], [1.0, 2.0]), block([1.0, 2.0], [1.0, 2.0])
    groups = [
        {"params": [fast], "lr": 0.1, "scaling": "none", "weight_decay": 0.0},
        {"params": []},
        {"params": [slow], "lr": 0.0},
    ]
    SGDSaI(groups).step()
    torch.testing.assert_close(fast, torch.tensor([0.9, 1.8]))
    assert torch.equal(slow, torch.tensor([1.0, 2.0]))


def test_named_parameters_are_accepted():
    model = nn.Linear(3, 1)
    optimizer = SGDSaI(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_a_momentum_that_rises_from_zero_starts_with_the_gradient():
    param = block([0.0, 0.0], [1.0, -3.0])
    optimizer = SGDSaI([param], 0.0, momentum=0.0)
    optimizer.step()
    assert "momentum_buffer" not in optimizer.state[param]
    scale = optimizer.state[param]["scale"].clone()
    optimizer.param_groups[0]["momentum"] = 0.9
    param.grad = torch.tensor([2.0, 2.5])
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)
    assert torch.equal(optimizer.state[param]["scale"], scale)


# State


def test_nothing_is_allocated_before_the_first_step_and_everything_at_it():
    model = tiny()
    optimizer = SGDSaI(model.parameters())
    assert not optimizer.state
    model.head.weight.grad = torch.randn_like(model.head.weight)
    optimizer.step()
    for param in model.parameters():
        assert set(optimizer.state[param]) == {"momentum_buffer", "scale"}
        assert optimizer.state[param]["scale"].shape == ()
        assert optimizer.state[param]["scale"].dtype == torch.float32


def test_frozen_parameters_cost_no_state_until_they_train():
    trained, frozen = block([1.0, 2.0], [1.0, 2.0]), block([1.0, 2.0])
    frozen.requires_grad_(False)
    optimizer = SGDSaI([trained, frozen])
    optimizer.step()
    assert frozen not in optimizer.state
    frozen.requires_grad_(True)
    frozen.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    assert optimizer.state[frozen]["scale"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(how, dtype):
    batches = token_batches(12)
    model = tiny(dtype)
    optimizer = SGDSaI(model.parameters(), 1e-3, scaling="gsnr_max")
    optimizer.param_groups[0]["lr"] = 0.1
    train(model, optimizer, batches[:5])
    twin, other = resumed(
        how,
        model,
        optimizer,
        lambda twin: SGDSaI(twin.parameters(), scaling="gsnr_max"),
    )
    train(model, optimizer, batches[5:])
    train(twin, other, batches[5:])
    assert same_bits(model, twin)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key])
            assert value.dtype == other.state[q][key].dtype


def test_a_resume_before_the_first_step_and_with_pending_blocks_is_exact():
    optimizers = [SGDSaI([block([1.0, 2.0]), block([1.0, 2.0])])]
    early, late = torch.tensor([1.0, 4.0]), torch.tensor([1.0, -1.0])
    for grads in ((early, None), (early, torch.zeros(2)), (None, late), (late, early)):
        optimizers.append(copy.deepcopy(optimizers[0]))
        for optimizer in optimizers:
            for param, grad in zip(
                optimizer.param_groups[0]["params"], grads, strict=True
            ):
                param.grad = grad
            optimizer.step()
    first = optimizers[0].param_groups[0]["params"]
    for optimizer in optimizers[1:]:
        for p, q in zip(first, optimizer.param_groups[0]["params"], strict=True):
            assert torch.equal(p, q)


def test_a_callable_scaling_stays_out_of_the_state_dict_and_survives_loading():
    rule = lambda moments: moments.numel  # noqa: E731
    param = block([1.0, 2.0], [1.0, 2.0])
    optimizer = SGDSaI([param], scaling=rule)
    optimizer.step()
    assert optimizer.state[param]["scale"] == 2
    assert optimizer.state_dict()["param_groups"][0]["scaling"] == "callable"
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["scaling"] is rule


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-50, 1e39])
def test_a_rule_that_gives_no_usable_scale_is_refused_before_anything_changes(value):
    param = block([1.0, 2.0], [1.0, 2.0])
    optimizer = SGDSaI([param], scaling=lambda m: torch.full_like(m.numel, value))
    with pytest.raises(ValueError, match="scaling must return positive and finite"):
        optimizer.step()
    assert torch.equal(param, torch.tensor([1.0, 2.0]))
    assert optimizer.state[param]["scale"] == 0


@pytest.mark.parametrize("steps_alone", [False, True])
@pytest.mark.parametrize("clears", [False, True])
def test_a_parameter_that_changes_its_shape_is_refused(steps_alone, clears):
    other, param = block([1.0, 2.0], [1.0, 2.0]), block([1.0] * 8, range(8))
    optimizer = SGDSaI([other, param])
    optimizer.step()
    group = optimizer.param_groups[0]
    alone = lambda: optimizer.step_parameter(param, group, 1)  # noqa: E731
    before = other.detach().clone()
    param.data = torch.ones(9000)
    if clears:
        param.grad = torch.ones(9000)
    sentence = "params must fit their state" if clears else "gradients must have"
    take = alone if steps_alone else optimizer.step
    with pytest.raises(RuntimeError, match=sentence):
        take()
    assert torch.equal(other, before)
    assert torch.equal(param, torch.ones(9000))


def test_an_allocation_that_fails_halfway_may_be_repeated(monkeypatch):
    params = [block([1.0, 2.0], [1.0, 2.0]) for _ in range(2)]
    optimizer, complete = SGDSaI(params), state.complete

    def fail_for_the_second(entry, param, group):
        if param is params[1]:
            raise MemoryError
        return complete(entry, param, group)

    monkeypatch.setattr(state, "complete", fail_for_the_second)
    with pytest.raises(MemoryError):
        optimizer.step()
    monkeypatch.undo()
    optimizer.step()
    assert all(optimizer.state[param]["scale"] > 0 for param in params)


def test_an_entry_that_was_only_asked_for_is_no_state():
    param = block([1.0, 2.0], [1.0, 2.0])
    optimizer = SGDSaI([param])
    assert optimizer.state[param] == {}
    assert list(get_scales(optimizer, nn.ParameterDict({"w": param})).values()) == [0]
    optimizer.step()
    assert optimizer.state[param]["scale"] > 0


@EXECUTION_OPTIONS
@pytest.mark.parametrize("scaling", RULES)
def test_a_block_without_entries_begins_at_its_first_gradient(
    execution, scaling, monkeypatch
):
    empty, param = block(torch.ones(3, 0)), block([[1.0] * 5], [range(5)])
    options = {"scaling": scaling, "calibration_steps": 1, **execution}
    optimizer = SGDSaI([empty, param], **options)
    optimizer.step()
    alone = block([[1.0] * 5], [range(5)])
    SGDSaI([alone], **options).step()
    assert torch.equal(param, alone)
    assert optimizer.state[empty]["scale"] == 0
    empty.grad = torch.ones(3, 0)
    optimizer.step()
    assert optimizer.state[empty]["scale"] == 1
    monkeypatch.delattr(calibration, "measure_blocks")
    optimizer.step()


@EXECUTION_OPTIONS
@pytest.mark.parametrize("scaling", [*RULES, lambda moments: moments.numel.tolist()])
def test_the_default_device_does_not_matter(execution, scaling):
    here, elsewhere = tiny(), tiny()
    options = {"state_dtype": torch.int8, **execution}
    plain, moved = (
        SGDSaI(groups_of(m, scaling), 1e-3, **options) for m in (here, elsewhere)
    )
    for ids in token_batches(3):
        for model in (here, elsewhere):
            model.zero_grad()
            next_token_loss(model, ids).backward()
        plain.step()
        with torch.device("meta"):
            moved.step()
            if scaling not in FINER:
                set_scales(moved, elsewhere, get_scales(moved, elsewhere))
            moved.load_state_dict(copy.deepcopy(moved.state_dict()))
    assert same_bits(here, elsewhere)


# 16-bit parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_the_float32_results_rounded_once(dtype):
    torch.manual_seed(0)
    weights, momentum, grad = (torch.randn(3, 50).to(dtype) for _ in range(3))
    param = block(weights, momentum, dtype)
    optimizer = SGDSaI([param], 0.0, weight_decay=0.1, stochastic_rounding=False)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.01
    param.grad = grad
    optimizer.step()
    averaged = torch.lerp(momentum.float(), grad.float(), 1 - 0.9)
    scale = optimizer.state[param]["scale"]
    expected = weights.float() * (1 - 0.01 * 0.1) - 0.01 * scale * averaged
    exact = optimizer.state[param]["momentum_buffer"]
    assert torch.equal(exact, averaged.to(dtype))
    spacing = torch.finfo(dtype).eps
    # Equal but where the sum's own float32 rounding crosses a boundary of rounding.
    same = (param == expected.to(dtype)).float().mean()
    assert same > 0.98
    torch.testing.assert_close(param.float(), expected, rtol=spacing, atol=1e-6)


def test_large_16_bit_blocks_are_chunked_without_a_seam():
    size = 2**20 + 77
    param = block(torch.zeros(size), torch.ones(size), torch.bfloat16)
    SGDSaI([param], 2**-10, scaling="none", stochastic_rounding=False).step()
    assert torch.equal(param, torch.full((size,), -(2.0**-10), dtype=torch.bfloat16))


def walk(dtype, stochastic_rounding=None):
    """Where a hundred steps, each smaller than a spacing of bfloat16, lead."""
    grad = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    param = block(torch.ones(4096), grad, dtype)
    optimizer = SGDSaI([param], 1e-7, stochastic_rounding=stochastic_rounding)
    for _ in range(100):
        optimizer.step()
    return param.detach().float() - 1


def test_stochastic_rounding_makes_a_bfloat16_walk_follow_the_float32_one():
    exact = walk(torch.float32)
    assert not walk(torch.bfloat16, stochastic_rounding=False).any()
    slopes = []
    for seed in range(12):
        torch.manual_seed(seed)
        slopes.append((walk(torch.bfloat16) @ exact / (exact @ exact)).item())
    # One walk's slope varies by 0.07.
    assert sum(slopes) / 12 == pytest.approx(1, abs=0.08)


def test_momentum_of_another_dtype_than_the_parameter_rounds_once():
    param = block([1.0, 2.0, 3.0], [0.1, 0.2, -0.7])
    optimizer = SGDSaI([param], state_dtype=torch.bfloat16)
    for _ in range(3):
        optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].dtype == torch.bfloat16
    wide = block([1.0, 2.0, 3.0], [0.1, 0.2, -0.7], torch.bfloat16)
    optimizer = SGDSaI([wide], state_dtype=torch.float32)
    for _ in range(3):
        optimizer.step()
    buffer = optimizer.state[wide]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    assert torch.equal(buffer, wide.grad.float())
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())
    assert optimizer.state[wide]["momentum_buffer"].dtype == torch.float32


# Memory


@EXECUTION_OPTIONS
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"maximize": True}])
def test_a_float32_step_makes_no_temporary_of_the_parameters_size(execution, options):
    size = 2**19
    param = block(torch.randn(size), torch.randn(size))
    optimizer = SGDSaI([param], 1e-3, **options, **execution)
    optimizer.step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        optimizer.step()
    allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())
    assert allocated < 4096


def test_momentum_that_is_taken_out_of_the_state_is_freed():
    param = nn.Parameter(torch.ones(4))
    optimizer = SGDSaI([param])
    param.grad = torch.arange(4.0)
    optimizer.step()
    entry = optimizer.state[param]
    on_device = weakref.ref(entry["momentum_buffer"])
    entry["momentum_buffer"] = entry["momentum_buffer"].clone()
    gc.collect()
    assert on_device() is None
    optimizer.step()
    elsewhere = weakref.ref(entry["momentum_buffer"])
    del entry
    optimizer.state.clear()
    gc.collect()
    assert elsewhere() is None
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)
