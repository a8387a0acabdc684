import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from saiopt import SGDSaI, get_scales
from saiopt.low_bit import Code, using


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


def test_empty_entries_and_those_of_no_parameter_are_dropped():
    model = nn.Linear(3, 2)
    saved = authors_state_dict(model)
    saved["state"][1] = {}
    saved["state"][7] = saved["state"][0]
    optimizer = SGDSaI(model.parameters())
    optimizer.load_state_dict(saved)
    assert list(optimizer.state) == [model.weight]
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


def step_on(params, optimizer, steps):
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()


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
