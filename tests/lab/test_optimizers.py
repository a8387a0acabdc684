import pytest
import torch
from torch import nn

from saiopt import SGDSaI
from saiopt.lab.compare import plan
from saiopt.lab.optimizers import OPTIMIZERS, get_optimizer, state_bytes
from saiopt.lab.recipe import Recipe


def build(
    name: str, model: nn.Module, lr: float, decay: float
) -> torch.optim.Optimizer:
    spec = get_optimizer(name)
    return spec.build(model, lr, decay, **spec.settings)


def one_step(name: str) -> torch.optim.Optimizer:
    model = nn.Linear(100, 10)
    optimizer = build(name, model, 0.1, 0.1)
    model(torch.randn(3, 100)).square().mean().backward()
    optimizer.step()
    return optimizer


def test_an_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(ValueError, match=r"sgdsai, .*, sgd, got adam$"):
        get_optimizer("adam")


@pytest.mark.parametrize("name", [n for n, s in OPTIMIZERS.items() if s.lr_of is None])
def test_state_bytes_are_those_of_the_published_state(name: str) -> None:
    buffers = {"adamw": 2}.get(name, 1)
    scalars = {"sgd": 0}.get(name, 1)
    assert state_bytes(one_step(name)) == 4 * (1010 * buffers + 2 * scalars)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("sgdsai", "gsnr"),
        ("sgdsai-sqrt-numel", "sqrt_numel"),
        ("sgdm-decoupled", "none"),
    ],
)
def test_the_controls_differ_in_their_scaling_only(name: str, scaling: str) -> None:
    optimizer = one_step(name)
    assert isinstance(optimizer, SGDSaI)
    reference = one_step("sgdsai").defaults
    assert optimizer.defaults == {**reference, "scaling": scaling}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_optimizers_decay_a_weight_alike(name: str) -> None:
    model = nn.Linear(30, 20, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build(name, model, 0.5, 0.004)
    for _ in range(300):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    # Coupled decay needs some steps to fill the momentum buffer: 3 % in 300 steps.
    assert model.weight.mean().item() == pytest.approx((1 - 0.002) ** 300, rel=0.03)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_biases_do_not_decay(name: str) -> None:
    optimizer = one_step(name)
    decays = {
        p.dim(): group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decays[1] == 0
    assert decays[2] > 0


@pytest.mark.parametrize("suffix", ["bf16", "int8", "int4"])
def test_a_low_bit_variant_takes_the_learning_rate_of_sgdsai(
    tiny: Recipe, suffix: str
) -> None:
    [run] = plan(tiny, [f"sgdsai-{suffix}"], [0], {})
    assert run.lr == tiny.lrs["sgdsai"]


def test_low_bit_momentum_takes_its_bytes() -> None:
    model = nn.Linear(128, 128)
    for name, most in (
        ("sgdsai-bf16", 2.1),
        ("sgdsai-int8", 1.1),
        ("sgdsai-int4", 0.6),
    ):
        spec = get_optimizer(name)
        optimizer = spec.build(model, 0.1, 0.0, **spec.settings)
        model(torch.randn(2, 128)).sum().backward()
        optimizer.step()
        held = state_bytes(optimizer) / sum(p.numel() for p in model.parameters())
        assert held < most
