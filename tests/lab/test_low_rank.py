import copy
import math

import pytest
import torch
from torch import Tensor, nn

from saiopt.lab.optimizers import build_optimizer
from saiopt.lab.optimizers.low_rank import ScaledAdamW, ScaledGD, lora_pairs

DELTA = 1e-6


class Adapted(nn.Module):
    """Two linear layers with adapters, named as peft names them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.ModuleDict()
        for layer, (rows, columns) in {"q": (5, 4), "v": (3, 6)}.items():
            weight = nn.Linear(columns, rows, bias=False).requires_grad_(False)
            factors = {
                "base_layer": weight,
                "lora_A": nn.ModuleDict({"default": nn.Linear(columns, 2, bias=False)}),
                "lora_B": nn.ModuleDict({"default": nn.Linear(2, rows, bias=False)}),
            }
            self.base[layer] = nn.ModuleDict(factors)


def oracle_directions(
    a: Tensor, b: Tensor, grads: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Invert explicitly, in float64."""
    a, b, grad_a, grad_b = (t.double() for t in (a, b, *grads))
    ridge = DELTA * torch.eye(len(a), dtype=torch.float64)
    left = torch.linalg.inv(b.T @ b + ridge)
    right = torch.linalg.inv(a @ a.T + ridge)
    return left @ grad_a, grad_b @ right


def oracle(
    name: str, start: tuple[Tensor, Tensor], grads: list, lr: float, decay: float
) -> list[Tensor]:
    """Follow the published formulas entry by entry, in float64."""
    factors = [t.double() for t in start]
    m = [torch.zeros_like(f) for f in factors]
    v = [torch.zeros_like(f) for f in factors]
    for t, (ga, gb) in enumerate(grads, start=1):
        directions = oracle_directions(factors[0], factors[1], (ga, gb))
        for i, d in enumerate(directions):
            step = d
            if name == "adamw":
                m[i] = 0.7 * m[i] + 0.3 * d
                v[i] = 0.8 * v[i] + 0.2 * d**2
                size = (v[i] / (1 - 0.8**t)).sqrt() + 1e-6
                step = m[i] / (1 - 0.7**t) / size
            factors[i] = (factors[i] - lr * step) * (1 - lr * decay)
    return factors


@pytest.mark.parametrize("name", ["gd", "adamw"])
def test_both_follow_their_formulas(name: str) -> None:
    a, b = nn.Parameter(torch.randn(2, 7)), nn.Parameter(torch.randn(5, 2))
    start = (a.detach().clone(), b.detach().clone())
    grads = [(torch.randn(2, 7), torch.randn(5, 2)) for _ in range(4)]
    build = ScaledGD if name == "gd" else ScaledAdamW
    optimizer = build([(a, b)], lr=0.05, weight_decay=0.3)
    for a.grad, b.grad in grads:
        optimizer.step()
    expected = oracle(name, start, grads, 0.05, 0.3)
    torch.testing.assert_close(a.detach().double(), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.detach().double(), expected[1], rtol=1e-4, atol=1e-5)


def test_a_convolution_is_stepped_as_a_matrix() -> None:
    shapes = ((2, 3, 3, 3), (4, 2, 1, 1))
    a, b = (nn.Parameter(torch.randn(shape)) for shape in shapes)
    a.grad, b.grad = (torch.randn(shape) for shape in shapes)
    grads = (a.grad.flatten(1), b.grad.flatten(1))
    matrices = (a.detach().flatten(1).clone(), b.detach().flatten(1).clone())
    ScaledGD([(a, b)], lr=0.1).step()
    for factor, start, direction in zip(
        (a, b), matrices, oracle_directions(*matrices, grads), strict=True
    ):
        expected = (start.double() - 0.1 * direction).float()
        torch.testing.assert_close(factor.detach().flatten(1), expected)


def steps_to_fit(optimizer_of, condition: float, limit: int = 400) -> int:
    """Count steps until ‖BA - W‖ is 1e-3 of what it was."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(30, 3, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(20, 3, generator=generator))
    values = torch.logspace(0, -math.log10(condition), 3)
    target = (left * values @ right.T).double()
    noise = 0.05 * values.sqrt()[:, None]
    a = (values.sqrt()[:, None] * right.T + noise * torch.randn(3, 20)).double()
    b = left.double() * values.sqrt().double()
    a, b = nn.Parameter(a), nn.Parameter(b)
    optimizer = optimizer_of(a, b)
    start = (b @ a - target).norm().item()
    for step in range(limit):
        optimizer.zero_grad()
        error = b @ a - target
        if error.norm().item() < 1e-3 * start / condition:
            return step
        (error.square().sum() / 2).backward()
        optimizer.step()
    return limit


def test_the_rate_does_not_depend_on_the_condition_number() -> None:
    def scaled(a: nn.Parameter, b: nn.Parameter) -> ScaledGD:
        return ScaledGD([(a, b)], lr=0.3, delta=1e-12)

    def plain(a: nn.Parameter, b: nn.Parameter) -> torch.optim.SGD:
        return torch.optim.SGD([a, b], lr=0.3)

    counts = [steps_to_fit(scaled, condition) for condition in (1.0, 100.0, 1000.0)]
    # The accuracy asked for grows with the condition number, by ln 1000 / rate at most.
    assert counts[0] < 25
    assert counts[2] < 3 * counts[0]
    assert steps_to_fit(plain, 1000.0) == 400


def test_pairs_are_found_by_their_names() -> None:
    model = Adapted()
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in lora_pairs(model)]
    assert shapes == [((2, 4), (5, 2)), ((2, 6), (3, 2))]


@pytest.mark.parametrize("name", ["sgdsai", "adamw"])
def test_a_frozen_a_stays_and_everything_else_moves_as_before(name: str) -> None:
    model = Adapted()
    before = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    params = [p for p in model.parameters() if p.requires_grad]
    values = [torch.randn_like(p) for p in params]
    for built, kind in ((model, f"{name}-frozen-a"), (other, name)):
        set_grads(built, values)
        build_optimizer(kind, built, 0.1, 0.1, 0).step()
    for (a, b), (start, expected) in zip(
        lora_pairs(model), lora_pairs(other), strict=True
    ):
        assert a.requires_grad
        assert torch.equal(b, expected)
        assert not torch.equal(a, start)
    untouched = Adapted()
    untouched.load_state_dict(before)
    for (a, _), (start, _) in zip(
        lora_pairs(model), lora_pairs(untouched), strict=True
    ):
        assert torch.equal(a, start)


@pytest.mark.parametrize(
    "name", ["scaled-gd", "scaled-adamw", "sgdsai-frozen-a", "adamw-frozen-a"]
)
def test_a_model_without_adapters_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="where the recipe has no LoRA adapters"):
        build_optimizer(name, nn.Linear(2, 2), 0.1, 0.0, 0)


def test_what_is_no_adapter_is_refused() -> None:
    model = Adapted()
    model.head = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"adapters alone .* got head\.bias"):
        lora_pairs(model)


@pytest.mark.parametrize(("name", "buffers"), [("scaled-gd", 0), ("scaled-adamw", 2)])
def test_a_resumed_optimizer_takes_the_same_steps(name: str, buffers: int) -> None:
    model = Adapted()
    whole = build_optimizer(name, model, 0.1, 0.1, 0)
    params = [p for p in model.parameters() if p.requires_grad]
    grads = [[torch.randn_like(p) for p in params] for _ in range(4)]
    for step, values in enumerate(grads):
        if step == 2:
            other = Adapted()
            other.load_state_dict(model.state_dict())
            resumed = build_optimizer(name, other, 0.1, 0.1, 0)
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
            assert len(whole.state) == (len(params) if buffers else 0)
        set_grads(model, values)
        whole.step()
        if step >= 2:
            set_grads(other, values)
            resumed.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def set_grads(model: nn.Module, values: list[Tensor]) -> None:
    params = [p for p in model.parameters() if p.requires_grad]
    for p, value in zip(params, values, strict=True):
        p.grad = value.clone()


def test_peft_names_adapters_as_expected() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(4, 4))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    assert [(len(a), b.shape[1]) for a, b in lora_pairs(adapted)] == [(2, 2)]
