import inspect
import io
import math
import pydoc
import typing
from typing import Literal

import numpy as np
import pytest
import torch

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
    with pytest.raises(RuntimeError, match="params must keep the shapes"):
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
