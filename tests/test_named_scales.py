import copy
import math

import pytest
import torch
from torch import nn

from saiopt import SGDSaI, get_scales, set_scales


@pytest.fixture
def model():
    model = nn.Linear(4, 2)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    return model


def test_scales_before_the_first_step_are_zero(model):
    scales = get_scales(SGDSaI(model.parameters()), model)
    assert scales == {"weight": 0.0, "bias": 0.0}


def test_scales_come_by_name_after_calibration(model):
    optimizer = SGDSaI(model.parameters())
    optimizer.step()
    assert get_scales(optimizer, model) == {
        "weight": optimizer.state[model.weight]["scale"].item(),
        "bias": optimizer.state[model.bias]["scale"].item(),
    }


def test_a_preset_scale_is_kept_and_the_others_calibrate(model):
    optimizer = SGDSaI(model.parameters())
    set_scales(optimizer, model, {"weight": 3.0})
    optimizer.step()
    scales = get_scales(optimizer, model)
    assert scales["weight"] == 3
    assert scales["bias"] > 0
    assert scales["bias"] != 3


def test_a_preset_scale_survives_a_resume_before_its_first_step(model):
    optimizer = SGDSaI(model.parameters())
    set_scales(optimizer, model, {"weight": 3.0})
    twin = copy.deepcopy(model)
    resumed = SGDSaI(twin.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    for param, original in zip(twin.parameters(), model.parameters(), strict=True):
        param.grad = original.grad.clone()
    optimizer.step()
    resumed.step()
    assert torch.equal(model.weight, twin.weight)
    assert get_scales(resumed, twin)["weight"] == 3


def test_a_running_block_keeps_its_momentum_under_a_new_scale(model):
    optimizer = SGDSaI(model.parameters())
    optimizer.step()
    momentum = optimizer.state[model.weight]["momentum_buffer"].clone()
    set_scales(optimizer, model, {"weight": 3.0})
    model.weight.grad.zero_()
    optimizer.step()
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    torch.testing.assert_close(buffer, 0.9 * momentum)
    assert get_scales(optimizer, model)["weight"] == 3


def test_setting_zero_calibrates_anew(model):
    optimizer = SGDSaI(model.parameters())
    optimizer.step()
    set_scales(optimizer, model, {"weight": 0.0})
    model.weight.grad = torch.linspace(-1, 1, 8).view(2, 4)
    optimizer.step()
    expected = (model.weight.grad.norm() / model.weight.grad.std()).item()
    assert get_scales(optimizer, model)["weight"] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf, 1e39, 1e-50])
def test_a_bad_scale_is_refused_before_anything_changes(model, scale):
    optimizer = SGDSaI(model.parameters())
    with pytest.raises(ValueError, match=r"scales\['bias'\] must be finite and >= 0"):
        set_scales(optimizer, model, {"weight": 2.0, "bias": scale})
    assert get_scales(optimizer, model)["weight"] == 0


def test_a_frozen_parameter_remembers_its_scale_until_it_trains(model):
    model.weight.requires_grad_(False)
    grad, model.weight.grad = model.weight.grad, None
    optimizer = SGDSaI(model.parameters())
    set_scales(optimizer, model, {"weight": 3.0})
    for _ in range(2):
        optimizer.step()
    model.weight.requires_grad_(True)
    model.weight.grad = grad
    optimizer.step()
    assert get_scales(optimizer, model)["weight"] == 3
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], grad)


def test_the_scales_of_a_partly_frozen_model_may_be_set_to_what_they_are(model):
    model.weight.requires_grad_(False)
    model.weight.grad = None
    optimizer = SGDSaI(model.parameters())
    for _ in range(2):
        optimizer.step()
        scales = get_scales(optimizer, model)
        set_scales(optimizer, model, scales)
        assert get_scales(optimizer, model) == scales
    assert list(optimizer.state) == [model.bias]
    optimizer.load_state_dict(optimizer.state_dict())


def test_unknown_names_are_refused(model):
    with pytest.raises(ValueError, match="scales must name parameters"):
        set_scales(SGDSaI(model.parameters()), model, {"kernel": 1.0})


def test_other_optimizers_and_other_models_are_refused(model):
    with pytest.raises(TypeError, match="optimizer must be SGDSaI, got SGD"):
        get_scales(torch.optim.SGD(model.parameters()), model)
    with pytest.raises(ValueError, match="model must have parameters of the optimizer"):
        get_scales(SGDSaI(model.parameters()), nn.Linear(2, 2))
