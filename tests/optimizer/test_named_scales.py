import copy
import math

import pytest
import torch
from torch import nn

from saiopt import SGDSaI, get_scales, set_scales, step_in_backward
from saiopt.analysis import GSNRProbe


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


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: it has an optimizer, and neither its state nor its groups."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __repr__(self):
        return "Wrapper"


class Stale(SGDSaI):
    """As Fabric's: it is of the optimizer's class, and has what that had once."""

    def __init__(self, optimizer):
        self.__dict__ = {**optimizer.__dict__, "optimizer": optimizer}


WRAPPINGS = {
    "once": Wrapper,
    "twice": lambda optimizer: Wrapper(Wrapper(optimizer)),
    "stale": Stale,
}


def use_wrapper(model, wrapped, own):
    """Set, get, train in the backward pass and measure, all through a wrapper."""
    set_scales(wrapped, model, {"weight": 3.0})
    assert get_scales(wrapped, model) == {"weight": 3.0, "bias": 0.0}
    handle = step_in_backward(wrapped)
    before = model.weight.detach().clone()
    probe = GSNRProbe(model)
    probe.record(step=0)
    model(torch.randn(3, 4)).square().sum().backward()
    handle.remove()
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None
    assert get_scales(wrapped, model) == get_scales(own, model)
    assert all(row.update > 0 for row in probe.record_updates(wrapped))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_helpers_find_the_optimizer_within_wrappers(model, wrapping):
    own = SGDSaI(model.parameters())
    own.step()
    wrapped = WRAPPINGS[wrapping](own)
    own.load_state_dict(copy.deepcopy(SGDSaI(model.parameters()).state_dict()))
    use_wrapper(model, wrapped, own)


def test_the_helpers_take_what_accelerate_prepares(model):
    accelerate = pytest.importorskip("accelerate")
    own = SGDSaI(model.parameters())
    model, wrapped = accelerate.Accelerator(cpu=True).prepare(model, own)
    assert not isinstance(wrapped, SGDSaI)
    use_wrapper(model, wrapped, own)


@pytest.mark.parametrize("helper", [get_scales, set_scales, step_in_backward])
def test_a_wrapper_of_another_optimizer_is_refused(model, helper):
    wrapped = Wrapper(torch.optim.SGD(model.parameters()))
    args = {get_scales: [model], set_scales: [model, {}]}.get(helper, [])
    with pytest.raises(TypeError, match="optimizer must be SGDSaI, got SGD: wrappers"):
        helper(wrapped, *args)
