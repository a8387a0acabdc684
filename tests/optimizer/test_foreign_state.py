"""Entries of optimizer.state that wrappers put there are carried, as torch does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from saiopt import SGDSaI, get_scales, set_scales

NOTES = {
    "a number": 1,
    "a word": "lookahead",
    "nothing": None,
    "a tensor": torch.arange(3.0).double(),
    "integers": torch.arange(3),
    "a dict": {"ema": torch.ones(2), "losses": [0.5, 0.25]},
    "a list": [torch.ones(1), 2],
}
EVERY_NOTE = pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)


def make(size=64, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.randn(size, generator=generator))
    optimizer = SGDSaI([param], 0.1, **options)
    return param, optimizer


def step(optimizer, index=0):
    for group in optimizer.param_groups:
        for param in group["params"]:
            generator = torch.Generator().manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


def step_parameters(optimizer, index=0):
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            generator = torch.Generator().manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step_parameter(param, group, i)


def add_group(optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    step(optimizer, 5)
    return optimizer


def reload(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer


def load_into_another(optimizer, state_dict=None):
    [[param]] = [group["params"] for group in optimizer.param_groups]
    other, loaded = make()
    other.data.copy_(param.detach())
    loaded.load_state_dict(state_dict or optimizer.state_dict())
    return loaded


def save(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return load_into_another(optimizer, torch.load(file, weights_only=True))


COPIES = {
    "reload": reload,
    "load": load_into_another,
    "save": save,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
}
EVERY_COPY = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
EVERY_STEP = pytest.mark.parametrize("take", [step, step_parameters])


def first(optimizer):
    return optimizer.param_groups[0]["params"][0]


def assert_same(value, expected):
    assert repr(value) == repr(expected)


# What belongs to no parameter


@EVERY_NOTE
@EVERY_STEP
@pytest.mark.parametrize("steps_before", [0, 2])
def test_notes_beside_the_parameters_change_no_step(note, take, steps_before):
    (plain, its), (noted, others) = make(), make()
    for index in range(4):
        if index == steps_before:
            others.state["note"] = copy.deepcopy(note)
        for optimizer in (its, others):
            take(optimizer, index)
    assert torch.equal(plain, noted)
    assert_same(others.state["note"], note)
    add_group(others)
    assert_same(others.state["note"], note)


@EVERY_NOTE
@EVERY_COPY
@pytest.mark.parametrize("steps_before", [0, 2])
def test_notes_beside_the_parameters_are_in_every_copy(note, copied, steps_before):
    plain, its = make()
    _, others = make()
    others.state["note"] = copy.deepcopy(note)
    for index in range(steps_before):
        step(its, index)
        step(others, index)
    others = copied(others)
    assert_same(others.state["note"], note)
    step(its, 9)
    step(others, 9)
    assert torch.equal(plain, first(others))


def test_keys_of_any_kind_are_carried():
    _, optimizer = make()
    optimizer.state[("ema", 1)] = 2
    optimizer.state[7] = {"losses": [1.0]}
    step(optimizer)
    loaded = load_into_another(optimizer)
    step(loaded)
    assert loaded.state[("ema", 1)] == 2
    assert loaded.state[7] == {"losses": [1.0]}


# What belongs to a parameter


@EVERY_NOTE
@EVERY_STEP
@pytest.mark.parametrize("steps_before", [0, 2])
def test_notes_in_a_parameters_entry_change_no_step(note, take, steps_before):
    (plain, its), (noted, others) = make(), make()
    for index in range(4):
        if index == steps_before:
            others.state[noted]["note"] = copy.deepcopy(note)
        for optimizer in (its, others):
            take(optimizer, index)
    assert torch.equal(plain, noted)
    assert_same(others.state[noted]["note"], note)
    add_group(others)
    assert_same(others.state[noted]["note"], note)


@EVERY_NOTE
@EVERY_COPY
@pytest.mark.parametrize("steps_before", [0, 2])
def test_notes_in_a_parameters_entry_are_in_every_copy(note, copied, steps_before):
    plain, its = make()
    noted, others = make()
    others.state[noted]["note"] = copy.deepcopy(note)
    for index in range(steps_before):
        step(its, index)
        step(others, index)
    others = copied(others)
    assert_same(others.state[first(others)]["note"], note)
    step(its, 9)
    step(others, 9)
    assert torch.equal(plain, first(others))


def test_loaded_notes_share_no_tensor():
    param, optimizer = make()
    optimizer.state[param].update(copy.deepcopy(NOTES))
    step(optimizer)
    loaded = load_into_another(optimizer)
    theirs, ours = optimizer.state[param], loaded.state[first(loaded)]
    assert theirs["a tensor"].data_ptr() != ours["a tensor"].data_ptr()
    held, copied = theirs["a dict"]["ema"], ours["a dict"]["ema"]
    assert held.data_ptr() != copied.data_ptr()


def test_an_optimizers_own_notes_are_not_copied_when_it_reloads_them():
    param, optimizer = make()
    optimizer.state[param]["note"] = held = torch.ones(3)
    step(optimizer)
    reload(optimizer)
    assert optimizer.state[param]["note"] is held


def test_scales_can_be_read_and_set_beside_notes():
    model = nn.Linear(3, 2)
    optimizer = SGDSaI(model.parameters())
    optimizer.state["note"] = 1
    optimizer.state[model.weight]["note"] = torch.ones(2)
    assert get_scales(optimizer, model) == {"weight": 0.0, "bias": 0.0}
    set_scales(optimizer, model, {"weight": 0.0})
    set_scales(optimizer, model, {"weight": 2.0})
    assert get_scales(optimizer, model)["weight"] == 2
    assert optimizer.state["note"] == 1
    assert torch.equal(optimizer.state[model.weight]["note"], torch.ones(2))


def test_notes_on_a_frozen_parameter_give_it_no_state():
    param, optimizer = make()
    param.requires_grad_(False)
    optimizer.state[param]["note"] = 1
    optimizer.step()
    assert optimizer.state[param] == {"note": 1}
    optimizer = load_into_another(optimizer)
    assert optimizer.state[first(optimizer)] == {"note": 1}


# They cost nothing


@EVERY_STEP
def test_notes_that_change_at_every_step_bind_no_block_anew(take, bindings):
    param, optimizer = make()
    optimizer.state["count"] = 0
    optimizer.state["ema"] = torch.zeros(2)
    for index in range(5):
        optimizer.state["count"] += 1
        optimizer.state["ema"] = torch.full((2,), float(index))
        optimizer.state[param]["count"] = index
        optimizer.state[param][f"loss {index}"] = torch.ones(())
        take(optimizer, index)
    assert len(bindings) == 1


@EVERY_STEP
def test_notes_that_come_and_go_move_no_state_to_another_parameter(take):
    runs = []
    for wraps in (False, True):
        params = [nn.Parameter(torch.ones(8)) for _ in range(3)]
        optimizer = SGDSaI(params, 0.1)
        for index in range(6):
            if wraps and index % 2:
                optimizer.state = type(optimizer.state)(
                    dict, {f"note {index}": index, **optimizer.state}
                )
            elif wraps:
                optimizer.state.pop(f"note {index - 1}", None)
            take(optimizer, index)
        runs.append(params)
    for plain, wrapped in zip(*runs, strict=True):
        assert torch.equal(plain, wrapped)


# What is wrong is refused still


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"momentum_buffer": torch.zeros(2)}, r"momentum_buffer must be .* \(64,\)"),
        ({"momentum_buffer": 1.0}, "momentum_buffer must be a tensor, got 1.0"),
        ({"scale": 2.0}, "scale must be a tensor, got 2.0"),
        (
            {"momentum_scale": torch.ones(64, 2).bfloat16()},
            "momentum_scale must be abs",
        ),
        ({"rounding_seed": torch.zeros(())}, "rounding_seed must be torch.int32"),
        ({"row_scale": torch.ones(2)}, r"row_scale must be .* \(64,\)"),
        (5, "must be a dict, got 5"),
    ],
)
@EVERY_STEP
def test_own_keys_that_do_not_fit_are_refused_before_the_first_step(
    entry, match, take, every_execution
):
    param, optimizer = make(**every_execution)
    optimizer.state[param] = entry
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match=match):
        take(optimizer)
    assert torch.equal(param, before)
    saved = {**optimizer.state_dict(), "state": {0: entry}}
    _, loaded = make(**every_execution)
    with pytest.raises(ValueError, match=match):
        loaded.load_state_dict(saved)
    assert not loaded.state


@pytest.mark.parametrize("steps_before", [0, 2])
def test_the_momentum_of_another_optimizer_starts_anew(steps_before):
    param, optimizer = make()
    plain, its = make()
    for index in range(steps_before):
        step(optimizer, index)
        step(its, index)
    for kind in (optimizer, its):
        kind.state.clear()
    optimizer.state[param] = {"momentum_buffer": torch.full((64,), 5.0)}
    for index in range(2, 4):
        step(optimizer, index)
        step(its, index)
    assert torch.equal(param, plain)


def test_another_optimizers_state_is_refused_beside_notes_too():
    param, optimizer = make()
    other = torch.optim.AdamW([nn.Parameter(param.detach().clone())])
    step(other)
    other.state["note"] = 1
    with pytest.raises(ValueError, match="got an entry with step, exp_avg, exp_avg_sq"):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state
