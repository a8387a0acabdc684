"""State that is written in place, past the optimizer, is noticed as in torch."""

import ctypes
from unittest import mock

import pytest
import row_rule
import torch
import torch.distributed as dist
from torch import nn

from saiopt import SGDSaI
from saiopt.optimizer import binding, lane
from saiopt.update import Execution, library
from saiopt.update.choice import Kernel


@pytest.fixture(autouse=True)
def _rules():
    with row_rule.known():
        yield


def copy_to(tensor, value):
    with torch.no_grad():
        tensor.copy_(value)


def copy_data(tensor, value):
    tensor.data.copy_(value)


def copy_in_inference_mode(tensor, value):
    with torch.inference_mode():
        tensor.copy_(value)


def copy_memory(tensor, value):
    ctypes.memmove(tensor.data_ptr(), value.data_ptr(), tensor.nbytes)


# Only the first is sure to change the version.
WRITERS = {
    "copy_": copy_to,
    "data": copy_data,
    "inference mode": copy_in_inference_mode,
    "memory": copy_memory,
}
EVERY_WRITER = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
FORMS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "4 bits": (torch.float32, "int4"),
}
EVERY_FORM = pytest.mark.parametrize(
    ("dtype", "state_dtype"), FORMS.values(), ids=FORMS
)


def make(dtype=torch.float32, **options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(s).to(dtype)) for s in ((64, 96), (5,))]
    return params, SGDSaI(params, 1e-2, **options)


def give_grads(params, index, *, missing=()):
    generator = torch.Generator().manual_seed(index)
    for i, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = None if i in missing else grad


def step(optimizer):
    optimizer.step()


def step_parameters(optimizer):
    [group] = optimizer.param_groups
    for i, param in enumerate(group["params"]):
        if param.grad is not None:
            optimizer.step_parameter(param, group, i)


EVERY_STEP = pytest.mark.parametrize("take", [step, step_parameters])


def train(params, optimizer, indices, take=step, **how):
    for index in indices:
        give_grads(params, index, **how)
        take(optimizer)


def tensors_of(optimizer, *keys):
    return [
        (entry, key)
        for entry in optimizer.state.values()
        for key in entry
        if not keys or key in keys
    ]


def zero(optimizer, write, *keys):
    for entry, key in tensors_of(optimizer, *keys):
        write(entry[key], torch.zeros_like(entry[key]))


def write_all(optimizer, other, write):
    for (entry, key), (theirs, _) in zip(
        tensors_of(optimizer), tensors_of(other), strict=True
    ):
        write(entry[key], theirs[key])


def assert_same(params, optimizer, others, other):
    for param, expected in zip(params, others, strict=True):
        assert torch.equal(param, expected)
        assert optimizer.state[param].keys() == other.state[expected].keys()
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, other.state[expected][key])


@EVERY_WRITER
@EVERY_FORM
@EVERY_STEP
def test_a_reset_in_place_calibrates_anew(
    write, dtype, state_dtype, take, every_execution
):
    options = {"state_dtype": state_dtype, **every_execution}
    params, optimizer = make(dtype, **options)
    train(params, optimizer, range(3), take)
    zero(optimizer, write)
    others, other = make(dtype, **options)
    for param, held in zip(others, params, strict=True):
        copy_data(param, held.detach())
    # Loading zeros into a new optimizer is the same, by another way.
    other.load_state_dict(optimizer.state_dict())
    train(params, optimizer, range(5, 8), take)
    train(others, other, range(5, 8))
    assert_same(params, optimizer, others, other)
    assert all(entry["scale"] > 0 for entry in optimizer.state.values())


@EVERY_WRITER
@EVERY_FORM
@EVERY_STEP
def test_state_that_is_copied_in_place_goes_on_as_where_it_came_from(
    write, dtype, state_dtype, take, every_execution
):
    options = {"state_dtype": state_dtype, **every_execution}
    params, optimizer = make(dtype, **options)
    others, other = make(dtype, **options)
    train(params, optimizer, range(3))
    # A dummy step makes the state exist.
    other.param_groups[0]["lr"] = 0.0
    for param in others:
        param.grad = torch.zeros_like(param)
    take(other)
    other.param_groups[0]["lr"] = 1e-2
    for param, held in zip(others, params, strict=True):
        copy_data(param, held.detach())
    write_all(other, optimizer, write)
    train(params, optimizer, range(3, 6))
    train(others, other, range(3, 6), take)
    assert_same(others, other, params, optimizer)


@EVERY_WRITER
def test_other_scales_that_are_copied_in_place_are_used(write, every_execution):
    params, optimizer = make(**every_execution)
    train(params, optimizer, range(2))
    for param in params:
        write(optimizer.state[param]["scale"], torch.tensor(2.0))
    before = [p.detach().clone() for p in params]
    train(params, optimizer, [2])
    for param, held in zip(params, before, strict=True):
        entry = optimizer.state[param]
        assert entry["scale"] == 2
        expected = held * (1 - 1e-2 * 1e-2) - 1e-2 * 2 * entry["momentum_buffer"]
        torch.testing.assert_close(param.detach(), expected)


@EVERY_WRITER
def test_a_momentum_that_is_zeroed_in_place_goes_on_from_zero(write, every_execution):
    params, optimizer = make(**every_execution)
    train(params, optimizer, range(2))
    scales = [optimizer.state[p]["scale"].item() for p in params]
    zero(optimizer, write, "momentum_buffer")
    train(params, optimizer, [2])
    for param, scale in zip(params, scales, strict=True):
        entry = optimizer.state[param]
        assert entry["scale"] == scale
        torch.testing.assert_close(entry["momentum_buffer"], 0.1 * param.grad)


@EVERY_WRITER
@EVERY_STEP
def test_scales_that_are_zeroed_in_place_start_the_momentum_anew(
    write, take, every_execution
):
    params, optimizer = make(**every_execution)
    train(params, optimizer, range(2))
    zero(optimizer, write, "scale")
    train(params, optimizer, [2], take)
    for param in params:
        entry = optimizer.state[param]
        assert entry["scale"] > 0
        assert torch.equal(entry["momentum_buffer"], param.grad)


@EVERY_WRITER
@EVERY_STEP
@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1)])
def test_a_reset_while_gradients_are_missing_is_noticed(
    write, take, missing, every_execution
):
    params, optimizer = make(**every_execution)
    train(params, optimizer, range(2))
    zero(optimizer, write)
    train(params, optimizer, [2], take, missing=missing)
    for i, param in enumerate(params):
        assert (optimizer.state[param]["scale"] > 0) == (i not in missing)
    train(params, optimizer, [3], take)
    assert all(entry["scale"] > 0 for entry in optimizer.state.values())


@EVERY_WRITER
def test_a_reset_of_one_block_leaves_the_others(write, every_execution):
    runs = []
    for resets in (False, True):
        params, optimizer = make(**every_execution)
        train(params, optimizer, range(2))
        if resets:
            for value in optimizer.state[params[1]].values():
                write(value, torch.zeros_like(value))
        train(params, optimizer, range(2, 4))
        runs.append((params, optimizer))
    (plain, its), (reset, others) = runs
    assert torch.equal(plain[0], reset[0])
    assert its.state[plain[1]]["scale"] != others.state[reset[1]]["scale"]


@EVERY_WRITER
def test_a_scale_that_is_no_number_calibrates_anew(write, every_execution):
    params, optimizer = make(**every_execution)
    train(params, optimizer, range(2))
    for param in params:
        write(optimizer.state[param]["scale"], torch.tensor(float("nan")))
    train(params, optimizer, [2])
    assert all(entry["scale"] > 0 for entry in optimizer.state.values())


@EVERY_WRITER
def test_a_block_whose_gradients_have_another_dtype_is_watched_too(
    write, every_execution
):
    params, optimizer = make(torch.bfloat16, **every_execution)
    params[0].grad_dtype = None

    def train_one(index):
        give_grads(params, index)
        params[0].grad = params[0].grad.float()
        optimizer.step()

    for index in range(3):
        train_one(index)
    zero(optimizer, write)
    train_one(3)
    assert all(entry["scale"] > 0 for entry in optimizer.state.values())


@EVERY_WRITER
@EVERY_STEP
def test_a_count_of_gradients_that_is_written_in_place_is_believed(
    write, take, every_execution
):
    params, optimizer = make(scaling="row_mean", **every_execution)
    train(params, optimizer, range(4))
    counts = [optimizer.state[p]["num_measured"] for p in params]
    assert [int(count) for count in counts] == [3, 3]
    for count in counts:
        write(count, torch.tensor(1, dtype=torch.int32))
    train(params, optimizer, [4], take)
    assert [int(count) for count in counts] == [2, 2]


@pytest.fixture(params=["triton", "foreach", "reference"])
def as_on_an_accelerator(request, monkeypatch):
    """Options under which blocks are updated as there, where nothing is read."""
    monkeypatch.setattr(lane, "_IS_CPU", lambda _: False)
    if request.param == "triton":
        triton = pytest.importorskip("saiopt.update.triton")
        if torch.cuda.is_available():
            pytest.skip("triton interprets its kernels only where there is no GPU")
        kernel = Kernel(triton.Table, triton.knows)
        chosen = Execution(triton.update, triton.look_ahead, triton.finish, kernel)
        monkeypatch.setattr(binding, "choose", lambda *_, **__: chosen)
    return {"foreach": request.param == "foreach"}


@EVERY_WRITER
@EVERY_STEP
def test_where_versions_alone_are_compared_waiting_blocks_are_watched_too(
    write, take, as_on_an_accelerator
):
    params, optimizer = make(**as_on_an_accelerator)
    others, other = make(**as_on_an_accelerator)
    train(params, optimizer, range(3))
    for param in others:
        param.grad = torch.zeros_like(param)
    take(other)
    for param, held in zip(others, params, strict=True):
        copy_data(param, held.detach())
    write_all(other, optimizer, write)
    train(params, optimizer, range(3, 6))
    train(others, other, range(3, 6), take)
    assert_same(others, other, params, optimizer)


def test_what_the_optimizer_writes_itself_binds_nothing_anew(every_execution, bindings):
    params, optimizer = make(torch.bfloat16, **every_execution)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    train(params, optimizer, range(2), missing=[1])
    train(params, optimizer, range(2, 6))
    train(params, optimizer, range(6, 8), step_parameters)
    assert len(bindings) == 1


def test_a_rule_that_measures_several_gradients_binds_nothing_anew(
    every_execution, bindings
):
    params, optimizer = make(scaling="row_mean", **every_execution)
    train(params, optimizer, range(6))
    assert len(bindings) == 1


# Over ranks


def broadcast_after_a_dummy_step(options, has_kernel):
    """As Horovod's broadcast_optimizer_state: rank 0 has trained, the others not."""
    loaded = library.load() if has_kernel else "no compiler"
    with mock.patch.object(library, "load", return_value=loaded):
        return broadcast_and_train(options)


def broadcast_and_train(options):
    params, optimizer = make(**options)
    if dist.get_rank() == 0:
        train(params, optimizer, range(3))
    else:
        optimizer.param_groups[0]["lr"] = 0.0
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 1e-2
    for param in params:
        dist.broadcast(param.data, 0)
        for value in optimizer.state[param].values():
            dist.broadcast(value, 0)
    train(params, optimizer, range(3, 6))
    return [p.detach() for p in params]


@pytest.mark.parametrize(
    ("options", "has_kernel"),
    [
        ({}, True),
        ({"state_dtype": "int8"}, True),
        ({}, False),
        ({"foreach": True}, True),
        ({"foreach": False}, True),
    ],
    ids=["chosen", "8 bits", "two_pass", "foreach", "reference"],
)
def test_state_that_is_broadcast_after_a_dummy_step_trains_all_ranks_alike(
    options, has_kernel, workers
):
    first, second = workers.run(2, broadcast_after_a_dummy_step, options, has_kernel)
    for param, expected in zip(second, first, strict=True):
        assert torch.equal(param, expected)
    params, optimizer = make(**options)
    train(params, optimizer, range(6))
    for param, expected in zip(params, first, strict=True):
        torch.testing.assert_close(param.detach(), expected)
