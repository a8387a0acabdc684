import copy
import fractions
import inspect
import io
import math
import pydoc
import typing
from typing import Literal

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from saiopt import SGDSaI


def param(dtype=torch.float32):
    return torch.nn.Parameter(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite and >= 0, got nan"),
        ({"lr": math.inf}, ValueError, "lr must be finite and >= 0, got inf"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"lr": torch.ones(2)}, ValueError, "a tensor of one entry, got 2 entries"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr must be finite and >= 0"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"momentum": None}, TypeError, "momentum must be a number, got None"),
        ({"eps": -1e-8}, ValueError, "eps must be finite and >= 0"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be finite and >= 0"),
        ({"scaling": "snr"}, ValueError, "scaling must be one of 'gsnr'"),
        ({"scaling": None}, ValueError, "scaling must be one of 'gsnr'"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
        ({"foreach": "yes"}, TypeError, "foreach must be True, False or None"),
        ({"fused": 0}, TypeError, "fused must be True, False or None, got 0"),
        ({"foreach": True, "fused": True}, ValueError, "foreach must be False or None"),
        ({"state_dtype": "bf16"}, ValueError, "state_dtype must be None"),
        ({"state_dtype": torch.float16}, ValueError, "state_dtype must be None"),
        ({"state_dtype": "int2"}, ValueError, "or 'int4', got 'int2'"),
        ({"state_dtype": torch.uint8}, ValueError, "got torch.uint8"),
        ({"stochastic_rounding": 1}, TypeError, "stochastic_rounding must be True"),
    ],
)
def test_a_bad_option_is_named_with_its_rule(options, error, sentence):
    with pytest.raises(error, match=sentence):
        SGDSaI([param()], **options)


def test_a_group_has_its_own_state_dtype():
    wide, narrow = param(), param()
    groups = [{"params": [wide]}, {"params": [narrow], "state_dtype": torch.bfloat16}]
    optimizer = SGDSaI(groups)
    wide.grad = narrow.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[wide]["momentum_buffer"].dtype == torch.float32
    assert optimizer.state[narrow]["momentum_buffer"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["nesterov", "dampening", "betas", "decoupled"])
def test_unknown_arguments_are_refused(name):
    with pytest.raises(TypeError, match=name):
        SGDSaI([param()], **{name: True})


def test_a_bad_group_is_refused_and_leaves_the_optimizer_as_it_was():
    optimizer = SGDSaI([param()])
    with pytest.raises(ValueError, match="momentum must be"):
        optimizer.add_param_group({"params": [param()], "momentum": 2.0})
    with pytest.raises(TypeError, match="params must be dense real tensors"):
        optimizer.add_param_group({"params": [param(torch.complex64)]})
    assert len(optimizer.param_groups) == 1


def test_stochastic_rounding_of_float16_is_refused():
    with pytest.raises(ValueError, match="stochastic_rounding must be None or False"):
        SGDSaI([param(torch.float16)], stochastic_rounding=True)


def test_a_sparse_gradient_is_refused_before_anything_changes():
    dense = param()
    dense.grad = torch.ones(3)
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = SGDSaI([dense, embedding.weight])
    with pytest.raises(RuntimeError, match="gradients must be dense"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(3))


def test_a_flattened_parameter_is_refused_by_its_mark_and_by_its_shape():
    flat = param()
    flat._is_flat_param = True
    with pytest.raises(RuntimeError, match="use_orig_params=True"):
        SGDSaI([flat])
    optimizer = SGDSaI([param(), torch.nn.Parameter(torch.ones(2, 2))])
    replaced = torch.nn.Parameter(torch.ones(7))
    replaced.grad = torch.ones(7)
    optimizer.param_groups[0]["params"] = [replaced]
    with pytest.raises(
        RuntimeError, match=r"params must keep the shapes.*DeepSpeed.*fully_shard"
    ):
        optimizer.step()


def test_parameters_may_be_replaced_by_others_of_the_same_shape():
    optimizer = SGDSaI([param(), torch.nn.Parameter(torch.ones(2, 2))])
    replaced = torch.nn.Parameter(torch.ones(2, 2))
    replaced.grad = torch.randn(2, 2)
    optimizer.param_groups[0]["params"] = [replaced]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.state[replaced]["scale"] > 0


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_are_kept_as_pythons(kind):
    optimizer = SGDSaI([{"params": [param()], "weight_decay": kind(1)}], lr=kind(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    [group] = torch.load(file, weights_only=True)["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (2, 1)


def test_parameters_without_a_shape_are_refused():
    layer = torch.nn.LazyLinear(2)
    with pytest.raises(ValueError, match="params must have their shapes"):
        SGDSaI(layer.parameters())
    layer(torch.ones(1, 3))
    SGDSaI(layer.parameters())


def test_a_state_dtype_that_is_set_before_the_first_step_is_kept_to():
    weight = param()
    weight.grad = torch.ones(3)
    optimizer = SGDSaI([weight])
    optimizer.param_groups[0]["state_dtype"] = torch.bfloat16
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].dtype == torch.bfloat16
    assert optimizer.param_groups[0]["state_dtype"] == "bfloat16"


@pytest.mark.parametrize("option", ["scaling", "state_dtype"])
def test_a_name_that_does_not_exist_is_refused_where_a_group_gets_it(option):
    weight = param()
    weight.grad = torch.ones(3)
    optimizer = SGDSaI([weight])
    optimizer.param_groups[0][option] = "sqrt_nummel"
    with pytest.raises(ValueError, match=rf"{option} must be .* got 'sqrt"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(weight, torch.ones(3))


def test_a_scaling_that_does_not_exist_is_refused_where_a_block_begins_late():
    weight = param()
    optimizer = SGDSaI([weight])
    optimizer.step()
    optimizer.param_groups[0]["scaling"] = "sqrt_nummel"
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"scaling must be one of .* got 'sqrt"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))


def test_stochastic_rounding_can_be_turned_off_and_on_later():
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = SGDSaI([weight], lr=1e-6, weight_decay=0.0, scaling="none")
    [group] = optimizer.param_groups
    moved = []
    for rounds in (None, False, None):
        group["stochastic_rounding"] = rounds
        before = weight.detach().clone()
        for _ in range(5):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved.append(not torch.equal(weight, before))
    assert moved == [True, False, True]


def test_a_momentum_that_is_not_kept_does_not_round():
    weight = torch.nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    optimizer = SGDSaI([weight], momentum=0.0, state_dtype="int4")
    optimizer.step()
    assert optimizer.state[weight].keys() == {"scale"}


@pytest.mark.parametrize("execution", [{}, {"foreach": True}, {"fused": False}])
def test_a_learning_rate_in_16_bits_decays_as_a_float(execution):
    shrunk = []
    for lr in (0.125, torch.tensor(0.125, dtype=torch.bfloat16)):
        weight = param()
        weight.grad = torch.zeros(3)
        SGDSaI([weight], lr=lr, weight_decay=0.01, **execution).step()
        shrunk.append(weight.detach())
    assert torch.equal(*shrunk)
    assert shrunk[0].max() < 1


# What is put into a group by hand, or by a scheduler.

BAD = [
    ("lr", "1e-3", TypeError, "lr must be a number, got '1e-3'"),
    ("lr", None, TypeError, "lr must be a number, got None"),
    ("lr", True, TypeError, "lr must be a number, got True"),
    ("lr", [0.1], TypeError, "lr must be a number"),
    ("lr", 1j, TypeError, "lr must be a number"),
    ("lr", np.array(0.1), TypeError, "lr must be a number"),
    ("lr", -1.0, ValueError, "lr must be finite and >= 0, got -1.0"),
    ("lr", math.nan, ValueError, "lr must be finite and >= 0, got nan"),
    ("lr", math.inf, ValueError, "lr must be finite and >= 0, got inf"),
    ("lr", np.float32(-1), ValueError, "lr must be finite and >= 0, got -1.0"),
    ("lr", np.float64("nan"), ValueError, "lr must be finite and >= 0, got nan"),
    ("lr", torch.ones(2), ValueError, "a tensor of one entry, got 2 entries"),
    ("lr", torch.tensor(-1.0), ValueError, "lr must be finite and >= 0, got -1.0"),
    ("lr", torch.tensor(math.nan), ValueError, "lr must be finite and >= 0, got nan"),
    ("lr", torch.tensor(math.inf), ValueError, "lr must be finite and >= 0, got inf"),
    ("momentum", 1.5, ValueError, r"momentum must be in \[0, 1\), got 1.5"),
    ("momentum", 1, ValueError, r"momentum must be in \[0, 1\), got 1"),
    ("momentum", -1, ValueError, r"momentum must be in \[0, 1\), got -1"),
    ("momentum", math.nan, ValueError, r"momentum must be in \[0, 1\), got nan"),
    ("momentum", "0.9", TypeError, "momentum must be a number, got '0.9'"),
    ("momentum", torch.tensor(0.9), TypeError, "momentum must be a number"),
    ("momentum", torch.ones(2), TypeError, "momentum must be a number"),
    ("momentum", np.ones(2), TypeError, "momentum must be a number"),
    ("eps", -1.0, ValueError, "eps must be finite and >= 0, got -1.0"),
    ("eps", math.inf, ValueError, "eps must be finite and >= 0, got inf"),
    ("eps", None, TypeError, "eps must be a number, got None"),
    ("weight_decay", -1.0, ValueError, "weight_decay must be finite and >= 0"),
    ("weight_decay", "0", TypeError, "weight_decay must be a number, got '0'"),
    ("scaling", "snr", ValueError, "scaling must be one of 'gsnr'"),
    ("scaling", ["gsnr"], ValueError, r"scaling must be one of .* got \['gsnr'\]"),
    ("maximize", "no", TypeError, "maximize must be True or False, got 'no'"),
    ("maximize", None, TypeError, "maximize must be True or False, got None"),
    ("maximize", 0, TypeError, "maximize must be True or False, got 0"),
    ("foreach", "yes", TypeError, "foreach must be True, False or None, got 'yes'"),
    ("fused", "yes", TypeError, "fused must be True, False or None, got 'yes'"),
    ("stochastic_rounding", 1, TypeError, "stochastic_rounding must be True"),
    ("state_dtype", "bf16", ValueError, "state_dtype must be None"),
    ("state_dtype", torch.float16, ValueError, "got torch.float16"),
    ("state_dtype", ["int8"], ValueError, "state_dtype must be None"),
]
STEPS = {
    "step": lambda optimizer: optimizer.step,
    "step_parameter": lambda optimizer: (
        lambda: [
            optimizer.step_parameter(p, group, i)
            for group in optimizer.param_groups
            for i, p in enumerate(group["params"])
        ]
    ),
    "compiled": lambda optimizer: compiled(optimizer.step),
}


def compiled(step):
    # Compiled anew, where many tests would reach the limit of compilations.
    torch.compiler.reset()
    return torch.compile(step, backend="eager")


def two_groups(**options):
    """Blocks in two groups, of which the second is tampered with."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(64, 65)) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    for p in params:
        p.grad = torch.randn_like(p)
    return params, SGDSaI(groups, **options)


# Compiling takes its time: one bad value of each option.
EACH = [(how, *bad) for how in ("step", "step_parameter") for bad in BAD]
EACH += [("compiled", *bad) for bad in {bad[0]: bad for bad in BAD}.values()]


@pytest.mark.parametrize("steps", [0, 2], ids=["at first", "later"])
@pytest.mark.parametrize(("how", "name", "value", "error", "sentence"), EACH)
def test_a_bad_option_in_a_group_is_refused_before_anything_changes(
    how, name, value, error, sentence, steps
):
    params, optimizer = two_groups()
    others, twin = two_groups()
    tampered = optimizer.param_groups[1]
    for _ in range(steps):
        optimizer.step()
        twin.step()
    held = tampered[name]
    tampered[name] = value
    # Only the parameters of the tampered group come to its options one by one.
    alone = steps and how == "step_parameter"
    if alone:
        for p in params[:2]:
            p.grad = None
    for _ in range(2):
        with pytest.raises(error, match=sentence):
            STEPS[how](optimizer)()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        for key, tensor in twin.state[q].items():
            assert torch.equal(optimizer.state[p][key], tensor)
        p.grad = q.grad.clone()
    assert steps or not optimizer.state
    tampered[name] = held
    STEPS[how](optimizer)()
    twin.step()
    for p, q in zip(params, others, strict=True):
        # What is compiled is not the kernel.
        tolerance = 1e-6 if how == "compiled" else 0.0
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def test_an_option_of_another_type_is_noticed_where_it_compares_equal():
    for name, held, value in (
        ("momentum", 0.5, torch.tensor(0.5)),
        ("weight_decay", 1.0, True),
        ("maximize", True, 1),
        ("stochastic_rounding", False, 0),
    ):
        _, optimizer = two_groups(**{name: held})
        optimizer.step()
        optimizer.param_groups[0][name] = value
        with pytest.raises(TypeError, match=f"{name} must be"):
            optimizer.step()


def test_executions_that_exclude_each_other_are_refused_in_a_group():
    _, optimizer = two_groups(foreach=True)
    optimizer.step()
    optimizer.param_groups[1]["fused"] = True
    with pytest.raises(ValueError, match="foreach must be False or None where fused"):
        optimizer.step()


@pytest.mark.parametrize("how", ["step", "step_parameter"])
@pytest.mark.parametrize("name", ["lr", "momentum", "eps", "weight_decay"])
@pytest.mark.parametrize(
    "kind",
    [np.float16, np.float32, np.float64, np.longdouble, fractions.Fraction, float],
)
def test_numbers_of_other_kinds_may_be_put_into_a_group(name, kind, how):
    params, optimizer = two_groups()
    others, twin = two_groups(**{name: 0.25})
    for group in optimizer.param_groups:
        group[name] = kind(0.25)
    for _ in range(2):
        STEPS[how](optimizer)()
        twin.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    assert all(type(group[name]) is float for group in optimizer.param_groups)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_whole_numbers_may_be_put_into_a_group(kind):
    params, optimizer = two_groups()
    others, twin = two_groups(lr=1.0, weight_decay=0.0, momentum=0.0)
    for name, value in (("lr", 1), ("weight_decay", 0), ("momentum", 0)):
        for group in optimizer.param_groups:
            group[name] = kind(value)
    optimizer.step()
    twin.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "lr",
    [
        torch.tensor(0.25),
        torch.tensor([0.25]),
        torch.tensor(0.25, dtype=torch.float64),
        torch.nn.Parameter(torch.tensor(0.25)),
    ],
)
@pytest.mark.parametrize("how", STEPS)
def test_a_rate_may_be_a_tensor_in_a_group_and_change_there(lr, how):
    params, optimizer = two_groups()
    others, twin = two_groups(lr=0.25)
    for group in optimizer.param_groups:
        group["lr"] = lr.detach().clone()
    for rate in (0.25, 0.125):
        for group, other in zip(optimizer.param_groups, twin.param_groups, strict=True):
            group["lr"].fill_(rate)
            other["lr"] = rate
        STEPS[how](optimizer)()
        twin.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)
    optimizer.param_groups[0]["lr"].fill_(math.nan)
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got nan"):
        STEPS[how](optimizer)()


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: np.float64(0.5) ** n),
    "LambdaLR to 0": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "Plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "Cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, np.float32(0.25)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_schedulers_set_is_taken_and_saved_so_that_torch_loads_it(name):
    params, optimizer = two_groups()
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step(*([1.0] if name == "Plateau" else []))
    assert all(p.isfinite().all() for p in params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    groups = torch.load(file, weights_only=True)["param_groups"]
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        assert saved["lr"] == group["lr"]


def test_a_dtype_that_is_set_is_saved_by_name():
    _, optimizer = two_groups()
    optimizer.step()
    optimizer.param_groups[0]["state_dtype"] = torch.bfloat16
    [first, _] = optimizer.state_dict()["param_groups"]
    assert first["state_dtype"] == "bfloat16"


# Parameters and gradients


FLOAT8 = [getattr(torch, name) for name in dir(torch) if name.startswith("float8")]


@pytest.mark.parametrize("dtype", [*FLOAT8, torch.complex64, torch.complex128], ids=str)
def test_dtypes_that_cannot_be_trained_are_refused(dtype):
    weight = torch.nn.Parameter(torch.ones(3).to(dtype))
    with pytest.raises(TypeError, match=f"got {dtype}.* for parameter 0 of group 0"):
        SGDSaI([weight])
    with pytest.raises(TypeError, match=f"got {dtype}.* for 'w'"):
        SGDSaI([("w", weight)])
    frozen = weight.detach()
    optimizer = SGDSaI([param(), frozen])
    frozen.requires_grad_(True)
    with pytest.raises(TypeError, match=f"got {dtype}.* for parameter 1 of group 0"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool], ids=str
)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_gradient_of_an_integer_parameter_is_refused(dtype, steps):
    codes = torch.ones(3).to(dtype)
    dense = param()
    optimizer = SGDSaI([dense, codes])
    for _ in range(steps):
        dense.grad = torch.randn(3)
        optimizer.step()
    held = dense.detach().clone()
    dense.grad, codes.grad = torch.ones(3), torch.ones(3).to(dtype)
    with pytest.raises(TypeError, match=f"got {dtype}.* for parameter 1 of group 0"):
        optimizer.step()
    assert torch.equal(dense, held)


def test_every_refusal_of_a_parameter_names_the_way_out():
    for weight, way in (
        (torch.ones(2, dtype=torch.complex64), r"train torch.view_as_real\(\)"),
        (torch.ones(2, 2).to_sparse(), r"train its to_dense\(\)"),
        (torch.ones(2).to(torch.float8_e4m3fn), "freeze it"),
    ):
        weight.requires_grad_(True)
        with pytest.raises(TypeError, match=f"for parameter 0 of group 0: .*{way}"):
            SGDSaI([weight])


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("how", STEPS)
@pytest.mark.parametrize("steps", [0, 2], ids=["at first", "later"])
def test_a_sparse_gradient_names_its_parameter_and_the_way_out(names, how, steps):
    dense, weight = param(), torch.nn.Parameter(torch.ones(3, 2))
    pairs = [("dense", dense), ("tokens.weight", weight)]
    optimizer = SGDSaI(pairs if names else [dense, weight])
    for _ in range(steps):
        dense.grad, weight.grad = torch.randn(3), torch.randn(3, 2)
        optimizer.step()
    held = copy.deepcopy([dense, weight])
    dense.grad = None if how == "step_parameter" else torch.ones(3)
    sparse = torch.nn.functional.embedding(torch.tensor([1]), weight, sparse=True)
    weight.grad = None
    sparse.sum().backward()
    name = "'tokens.weight'" if names else "parameter 1 of group 0"
    sentence = f"gradients must be dense, got torch.sparse_coo for {name}: .*"
    with pytest.raises(RuntimeError, match=sentence + "sparse=False.*SparseAdam"):
        STEPS[how](optimizer)()
    for p, q in zip((dense, weight), held, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("steps", [0, 2], ids=["at first", "later"])
def test_a_complex_gradient_of_a_real_parameter_is_refused_by_name(steps):
    weight = param()
    optimizer = SGDSaI([("w", weight)])
    for _ in range(steps):
        weight.grad = torch.randn(3)
        optimizer.step()
    held = weight.detach().clone()
    weight.grad = None
    weight.grad_dtype = None
    weight.grad = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(
        RuntimeError, match=r"gradients must be .* got .*complex64 .*'w'"
    ):
        optimizer.step()
    assert torch.equal(weight, held)


# The signature


@pytest.mark.parametrize("name", ["betas", "beta1"])
def test_what_takes_the_place_of_betas_is_named(name):
    with pytest.raises(TypeError, match=rf"argument '{name}' .*: momentum takes"):
        SGDSaI([param()], lr=1e-3, **{name: (0.9, 0.95)})


def test_the_first_arguments_are_those_of_the_authors_class():
    signature = inspect.signature(SGDSaI)
    first = list(signature.parameters.items())[:5]
    assert [(name, p.default) for name, p in first] == [
        ("params", inspect.Parameter.empty),
        ("lr", 1e-2),
        ("momentum", 0.9),
        ("eps", 1e-8),
        ("weight_decay", 1e-2),
    ]
    optimizer = SGDSaI([param()], 0.5, 0.8, 1e-6, 0.25)
    [group] = optimizer.param_groups
    assert [group[name] for name, _ in first[1:]] == [0.5, 0.8, 1e-6, 0.25]


def test_the_signature_names_the_arguments_and_no_others():
    for signature in (inspect.signature(SGDSaI), inspect.signature(SGDSaI.__init__)):
        kinds = {p.kind for p in signature.parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert inspect.Parameter.VAR_POSITIONAL not in kinds
    spec = inspect.getfullargspec(SGDSaI.__init__)
    assert (spec.args[0], spec.varkw) == ("self", None)
    shown = pydoc.render_doc(SGDSaI, renderer=pydoc.plaintext)
    assert "class SGDSaI(torch.optim.optimizer.Optimizer)\n |  SGDSaI(params:" in shown
    assert "unknown" not in shown
    given = {name for name in inspect.signature(SGDSaI).parameters if name != "params"}
    assert given == SGDSaI([param()]).defaults.keys() - {"differentiable"}


def test_typed_command_lines_find_all_state_dtypes_and_scalings():
    hints = typing.get_type_hints(SGDSaI.__init__)
    names = Literal["float32", "bfloat16", "int8", "int4"]
    assert hints["state_dtype"] == torch.dtype | names | None
    assert str in typing.get_args(hints["scaling"])
    assert "unknown" not in hints
    for name in typing.get_args(names):
        SGDSaI([param()], state_dtype=name)
