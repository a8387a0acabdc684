"""Steps that are traced, imitated without values, or taken in inference mode."""

import copy

import pytest
import row_rule
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from saiopt import SGDSaI, set_scales

OPTIONS = {
    "plain": {},
    "bfloat16 momentum": {"state_dtype": "bfloat16"},
    "8 bits": {"state_dtype": "int8"},
    "4 bits": {"state_dtype": "int4"},
    "without momentum": {"momentum": 0.0},
    "maximize": {"maximize": True, "weight_decay": 0.0},
    "gsnr_max": {"scaling": "gsnr_max"},
    "rows": {"scaling": "row_mean"},
    "orthogonal": {"scaling": "orthogonal"},
    "factored": {"scaling": "factored", "calibration_steps": 2},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
# A mode of fake tensors takes no other ones.
WITH_VALUES = {**OPTIONS, "tensor lr": {"lr": torch.tensor(0.01)}}
EVERY_OPTION_WITH_VALUES = pytest.mark.parametrize(
    "options", WITH_VALUES.values(), ids=WITH_VALUES
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def _rules():
    with row_rule.known():
        yield


def net(dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Linear(64, 96, dtype=dtype)
    if options.get("scaling") == "orthogonal":
        weight, bias = ({"params": [p]} for p in model.parameters())
        return model, SGDSaI([weight, {**bias, "scaling": "none"}], **options)
    return model, SGDSaI(model.parameters(), **options)


def grads_of(model, index):
    generator = torch.Generator().manual_seed(index)
    return [
        torch.randn(p.shape, generator=generator).to(p.dtype)
        for p in model.parameters()
    ]


def step(model, optimizer, index):
    grads = grads_of(model, index)
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad
    optimizer.step()


def clones(tree):
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), tree)


def state_of(optimizer):
    return clones(optimizer.state_dict()["state"])


def assert_equal_trees(tree, expected, **tolerances):
    torch.testing.assert_close(
        pytree.tree_leaves(tree), pytree.tree_leaves(expected), **tolerances
    )


# Values that nobody can read


def step_twice(make):
    model, optimizer = make()
    for _ in range(2):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
    return model, optimizer


def without_values(how, make):
    if how == "fake":
        with FakeTensorMode():
            return step_twice(make)
    with torch.device("meta"):
        return step_twice(make)


@pytest.mark.parametrize("how", ["fake", "meta"])
@EVERY_OPTION
@DTYPES
def test_tensors_without_values_step_and_get_their_state(
    how, options, dtype, every_execution
):
    model, optimizer = without_values(
        how, lambda: net(dtype, **options, **every_execution)
    )
    concrete, its = net(dtype, **options, **every_execution)
    step(concrete, its, 0)
    for param, expected in zip(model.parameters(), concrete.parameters(), strict=True):
        entry, values = optimizer.state[param], its.state[expected]
        assert entry.keys() == values.keys()
        for key, value in values.items():
            assert (entry[key].shape, entry[key].dtype) == (value.shape, value.dtype)


@pytest.mark.parametrize("how", ["fake", "meta"])
def test_a_learning_rate_without_a_value_is_taken(how):
    def make():
        model = nn.Linear(3, 2)
        return model, SGDSaI(model.parameters(), lr=torch.tensor(0.1))

    without_values(how, make)


@pytest.mark.parametrize("how", ["fake", "meta"])
@EVERY_OPTION
def test_state_without_values_is_loaded(how, options):
    def make():
        model, optimizer = net(**options)
        step(model, optimizer, 0)
        other, loaded = net(**options)
        loaded.load_state_dict(optimizer.state_dict())
        return other, loaded

    without_values(how, make)


def test_the_authors_state_without_values_is_loaded():
    with FakeTensorMode():
        model, optimizer = net()
        state = {
            i: {"gsnr": torch.ones(()), "momentum_buffer": torch.ones_like(p)}
            for i, p in enumerate(model.parameters())
        }
        group = {"lr": 0.1, "momentum": 0.9, "eps": 1e-8, "weight_decay": 0.0}
        saved = {"state": state, "param_groups": [{**group, "params": list(state)}]}
        optimizer.load_state_dict(saved)
        step(model, optimizer, 0)


def test_scales_may_be_set_without_values():
    with FakeTensorMode():
        model, optimizer = net()
        set_scales(optimizer, model, {"weight": 2.0})
        step(model, optimizer, 0)
        set_scales(optimizer, model, {"weight": 3.0})
        step(model, optimizer, 1)


def test_a_rule_that_measures_no_more_is_left_without_values():
    with FakeTensorMode():
        model, optimizer = net(scaling="row_mean")
        step(model, optimizer, 0)
        optimizer.param_groups[0]["scaling"] = "gsnr"
        step(model, optimizer, 1)


# Tracing a step


def swapped_step(optimizer):
    """A step as a function of everything that it reads and writes."""
    # New in torch 2.13.
    stateless = pytest.importorskip("torch.optim._stateless")
    swap = stateless.swap_in_optimizer_params_and_state

    def run(params, state_dict, grads):
        with swap(optimizer, params, state_dict):
            for param, grad in zip(params.values(), grads, strict=True):
                param.grad = grad
            optimizer.step()
        return params, state_dict

    return run


TRACERS = {
    "real": make_fx,
    "fake": lambda f: make_fx(f, tracing_mode="fake"),
    "symbolic": lambda f: make_fx(f, tracing_mode="symbolic"),
    "before dispatch": lambda f: make_fx(f, pre_dispatch=True),
    "functional": lambda f: make_fx(torch.func.functionalize(f)),
}
EVERY_TRACER = pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS)


def calibrated(**options):
    model, optimizer = net(**options)
    for index in range(3):
        step(model, optimizer, index)
    return model, optimizer


def assert_replays(graph, model, optimizer):
    """A graph goes on as eager steps do."""
    params, held = (
        clones(dict(model.named_parameters())),
        clones(optimizer.state_dict()),
    )
    for index in range(3, 6):
        step(model, optimizer, index)
        graph(params, held, grads_of(model, index))
    assert_equal_trees(params, clones(dict(model.named_parameters())))
    assert_equal_trees(held["state"], state_of(optimizer))


@EVERY_TRACER
@EVERY_OPTION_WITH_VALUES
@pytest.mark.filterwarnings("ignore:.*make_fx.*:UserWarning")
def test_a_traced_step_replays_the_eager_one(tracer, options):
    model, optimizer = calibrated(**options)
    params, held = (
        clones(dict(model.named_parameters())),
        clones(optimizer.state_dict()),
    )
    graph = tracer(swapped_step(optimizer))(params, held, grads_of(model, 3))
    assert_replays(graph, model, optimizer)


@EVERY_TRACER
def test_a_traced_step_replays_every_execution(tracer, every_execution):
    model, optimizer = calibrated(**every_execution)
    params, held = (
        clones(dict(model.named_parameters())),
        clones(optimizer.state_dict()),
    )
    graph = tracer(swapped_step(optimizer))(params, held, grads_of(model, 3))
    assert_replays(graph, model, optimizer)


def test_a_step_on_the_optimizers_own_tensors_is_traced_too(every_execution):
    model, optimizer = calibrated(**every_execution)
    params = dict(model.named_parameters())
    arguments = (params, optimizer.state_dict(), grads_of(model, 9))
    # Tracing real tensors takes the step, as for torch's own.
    graph = make_fx(swapped_step(optimizer))(*arguments)
    assert_replays(graph, model, optimizer)


def test_a_step_is_traced_as_torch_documents_it():
    model, optimizer = calibrated()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    before = clones(dict(model.named_parameters())), state_of(optimizer)
    with mode:
        params = {n: mode.from_tensor(p) for n, p in model.named_parameters()}
        held = pytree.tree_map_only(
            torch.Tensor, mode.from_tensor, optimizer.state_dict()
        )
        grads = [mode.from_tensor(g) for g in grads_of(model, 0)]
    graph = make_fx(swapped_step(optimizer))(params, held, grads)
    assert_equal_trees(
        clones(dict(model.named_parameters())), before[0], rtol=0, atol=0
    )
    assert_equal_trees(state_of(optimizer), before[1], rtol=0, atol=0)
    assert_replays(graph, model, optimizer)


@EVERY_OPTION_WITH_VALUES
def test_tracing_leaves_no_trace_in_the_optimizer(options, every_execution):
    runs = []
    for traces in (False, True):
        model, optimizer = net(**options, **every_execution)
        for index in range(6):
            if traces and index == 3:
                params = clones(dict(model.named_parameters()))
                held = clones(optimizer.state_dict())
                make_fx(swapped_step(optimizer))(params, held, grads_of(model, 9))
            step(model, optimizer, index)
        runs.append((clones(list(model.parameters())), state_of(optimizer)))
    assert_equal_trees(runs[1], runs[0], rtol=0, atol=0)


def test_blocks_are_bound_once_more_on_either_side_of_a_trace(bindings):
    model, optimizer = calibrated()
    assert len(bindings) == 1
    params, held = (
        clones(dict(model.named_parameters())),
        clones(optimizer.state_dict()),
    )
    make_fx(swapped_step(optimizer))(params, held, grads_of(model, 9))
    for index in range(3, 6):
        step(model, optimizer, index)
    assert len(bindings) == 3


@EVERY_OPTION_WITH_VALUES
def test_swapped_tensors_step_and_the_optimizers_own_are_restored(
    options, every_execution
):
    model, optimizer = calibrated(**options, **every_execution)
    params, held = (
        clones(dict(model.named_parameters())),
        clones(optimizer.state_dict()),
    )
    before = clones(params), state_of(optimizer)
    own = {id(p) for p in optimizer.state}
    swapped_step(optimizer)(params, held, grads_of(model, 3))
    assert {id(p) for p in optimizer.state} == own
    assert_equal_trees(
        clones(dict(model.named_parameters())), before[0], rtol=0, atol=0
    )
    assert_equal_trees(state_of(optimizer), before[1], rtol=0, atol=0)
    step(model, optimizer, 3)
    assert_equal_trees(params, clones(dict(model.named_parameters())), rtol=0, atol=0)
    assert_equal_trees(held["state"], state_of(optimizer), rtol=0, atol=0)


# Inference mode


def make_in(model, optimizer):
    with torch.inference_mode():
        return model, SGDSaI(model.parameters(), **optimizer.defaults)


def step_in(model, optimizer):
    with torch.inference_mode():
        step(model, optimizer, 0)
        step(model, optimizer, 1)
    return model, optimizer


def load_in(model, optimizer):
    step(model, optimizer, 0)
    with torch.inference_mode():
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.load_state_dict(clones(optimizer.state_dict()))
    return model, optimizer


def load_and_step_in(model, optimizer):
    step(model, optimizer, 0)
    with torch.inference_mode():
        optimizer.load_state_dict(clones(optimizer.state_dict()))
        step(model, optimizer, 1)
    return model, optimizer


def load_in_and_copy(model, optimizer):
    return copy.deepcopy(load_in(model, optimizer))


def copy_in_and_load(model, optimizer):
    step(model, optimizer, 0)
    with torch.inference_mode():
        saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    return model, optimizer


def set_in(model, optimizer):
    step(model, optimizer, 0)
    with torch.inference_mode():
        optimizer.load_state_dict(clones(optimizer.state_dict()))
        scale = optimizer.state[model.weight]["scale"].item()
        set_scales(optimizer, model, {"weight": scale})
    return model, optimizer


# Each with the number of steps that it takes.
WAYS = {
    "make": (make_in, 0),
    "step": (step_in, 2),
    "load": (load_in, 1),
    "load and step": (load_and_step_in, 2),
    "load, then copy": (load_in_and_copy, 1),
    "copy, then load": (copy_in_and_load, 1),
    "set scales": (set_in, 1),
}


@pytest.mark.parametrize(("way", "taken"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("alone", [False, True], ids=["step", "step_parameter"])
@DTYPES
def test_what_is_done_in_inference_mode_goes_on_outside(
    way, taken, alone, dtype, every_execution
):
    plain, its = net(dtype, lr=1e-3, **every_execution)
    model, optimizer = way(*net(dtype, lr=1e-3, **every_execution))
    for index in range(4):
        step(plain, its, index)
    for index in range(taken, 4):
        grads = grads_of(model, index)
        for param, grad in zip(model.parameters(), grads, strict=True):
            param.grad = grad
            if alone:
                optimizer.step_parameter(param, optimizer.param_groups[0], 0)
        if not alone:
            optimizer.step()
    assert_equal_trees(
        list(model.parameters()), list(plain.parameters()), rtol=0, atol=0
    )
    assert_equal_trees(state_of(optimizer), state_of(its), rtol=0, atol=0)


def test_a_model_that_lives_in_inference_mode_steps_there(every_execution):
    plain, its = net(**every_execution)
    with torch.inference_mode():
        model, optimizer = net(**every_execution)
    for index in range(3):
        step(plain, its, index)
        with torch.inference_mode():
            step(model, optimizer, index)
    assert torch.equal(model.weight, plain.weight)
