"""Optimizers whose rules go by the roles of parameters, and their controls."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saiopt import SGDSaI, parameter_roles
from saiopt.lab.comparison.compare import plan, prepare
from saiopt.lab.optimizers import OPTIMIZERS, build_optimizer, state_bytes
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.ranks import Ranks
from saiopt.lab.training.run import Run

OURS = ("sgdsai-orthogonal", "sgdsai-factored")
CONTROLS = ("muon-factored", "muon-adamw")
SUFFIXES = ("bf16", "int8", "int4")
LR, DECAY = 0.02, 0.1


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.stack = nn.Parameter(0.1 * torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eij->bj", x, self.stack)


class Model(nn.Module):
    """Every role but tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 12)
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.experts = Experts()
        self.hidden = nn.Linear(5, 8)
        self.own = nn.Parameter(0.1 * torch.randn(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(self.embedding(tokens).view(-1, 3, 2, 2)).flatten(1)
        return self.head(self.hidden(self.experts(x)).tanh() @ self.own)


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def backward(trained: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    trained.zero_grad()
    trained(torch.randint(7, (16,))).square().mean().backward()


def build(name: str, trained: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(name, trained, LR, DECAY, seed=0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def train(
    optimizer: torch.optim.Optimizer, trained: nn.Module, steps: range
) -> list[Tensor]:
    for step in steps:
        backward(trained, step)
        # As the loop does, for all groups.
        set_lr(optimizer, LR / (1 + step))
        optimizer.step()
    return [p.detach() for p in trained.parameters()]


def flattened(name: str, tensor: Tensor) -> list[Tensor]:
    stack = tensor if name == "experts.stack" else tensor.flatten(1)[None]
    return [m.clone() for m in stack.detach()]


def plain_muon(names: list[str], steps: range) -> dict[str, list[Tensor]]:
    """Step flattened copies by torch's class, with the gradients of a real run."""
    trained, run = model(), model()
    named = dict(trained.named_parameters())
    copies = {n: [nn.Parameter(m) for m in flattened(n, named[n])] for n in names}
    optimizer = torch.optim.Muon(
        [m for matrices in copies.values() for m in matrices],
        weight_decay=DECAY,
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
    )
    guide = build("muon-adamw", run)
    for step in steps:
        backward(run, step)
        for name in names:
            grad = run.get_parameter(name).grad
            assert grad is not None
            for matrix, part in zip(copies[name], flattened(name, grad), strict=True):
                matrix.grad = part
        for each in (guide, optimizer):
            set_lr(each, LR / (1 + step))
            each.step()
    return {n: [m.detach() for m in matrices] for n, matrices in copies.items()}


HIDDEN = ["conv.weight", "experts.stack", "hidden.weight"]


@pytest.fixture
def torch_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's Newton-Schulz keep float32."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("torch_in_float32")
def test_muon_by_role_is_torchs_on_flattened_copies() -> None:
    expected = plain_muon(HIDDEN, range(3))
    trained = model()
    train(build("muon-adamw", trained), trained, range(3))
    for name in HIDDEN:
        assert_near(flattened(name, trained.get_parameter(name)), expected[name])


@pytest.mark.parametrize("name", CONTROLS)
def test_the_controls_give_muon_what_is_stepped_orthogonally(name: str) -> None:
    ours, control = (build(n, model()) for n in ("sgdsai-orthogonal", name))

    def names(optimizer: torch.optim.Optimizer, key: str, value: object) -> set[str]:
        groups = [g for g in optimizer.param_groups if g[key] == value]
        return {name for group in groups for name in group["param_names"]}

    assert names(control, "by_muon", True) == set(HIDDEN)
    assert names(ours, "scaling", "orthogonal") == set(HIDDEN)


@pytest.mark.parametrize(
    ("name", "others"), [("muon-adamw", HIDDEN), ("adamw-by-role", [])]
)
def test_adamw_by_role_is_torchs_at_rates_of_its_own(
    name: str, others: list[str]
) -> None:
    trained, plain = model(), model()
    rates = {"embedding": 4.0}
    roles = parameter_roles(plain)
    rest = {n: p for n, p in plain.named_parameters() if n not in others}
    oracle = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": 0.0 if "bias" in n else DECAY / rate}
            for n, p in rest.items()
            for rate in [rates.get(roles[n], 1.0)]
        ],
        betas=(0.9, 0.95),
    )
    optimizer = build(name, trained)
    for step in range(3):
        backward(trained, step)
        for name, param in rest.items():
            grad = trained.get_parameter(name).grad
            assert grad is not None
            param.grad = grad.clone()
        lr = LR / (1 + step)
        for group, name in zip(oracle.param_groups, rest, strict=True):
            group["lr"] = lr * rates.get(roles[name], 1.0)
        set_lr(optimizer, lr)
        optimizer.step()
        oracle.step()
    for name, param in rest.items():
        assert torch.equal(trained.get_parameter(name), param), name


@pytest.mark.parametrize("name", ["sgdsai-orthogonal", *CONTROLS])
def test_all_but_hidden_matrices_have_a_multiplier_of_their_own(name: str) -> None:
    plain, changed = (
        build_optimizer(name, model(), LR, DECAY, 0, settings)
        for settings in (None, {"rest": 0.5})
    )
    for before, after in zip(plain.param_groups, changed.param_groups, strict=True):
        factor = 1.0 if before["role"] in {"hidden", "stacked"} else 0.5
        assert after["lr_multiplier"] == factor * before["lr_multiplier"]


def test_the_rest_of_muon_factored_moves_as_under_sgdsai() -> None:
    trained, plain = model(), model()
    control, ours = build("muon-factored", trained), build("sgdsai-orthogonal", plain)
    rest = [n for n, _ in plain.named_parameters() if n not in HIDDEN]
    for step in range(3):
        backward(trained, step)
        for name, param in plain.named_parameters():
            grad = trained.get_parameter(name).grad
            assert grad is not None
            param.grad = grad.clone()
        for each in (control, ours):
            set_lr(each, LR / (1 + step))
            each.step()
    for name in rest:
        assert torch.equal(trained.get_parameter(name), plain.get_parameter(name)), name


@pytest.mark.usefixtures("torch_in_float32")
def test_muon_factored_steps_hidden_matrices_by_torchs_muon() -> None:
    trained = model()
    copies = {n: flattened(n, trained.get_parameter(n)) for n in HIDDEN}
    matrices = [nn.Parameter(m) for parts in copies.values() for m in parts]
    oracle = torch.optim.Muon(
        matrices, weight_decay=DECAY, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = build("muon-factored", trained)
    for step in range(3):
        backward(trained, step)
        grads = [
            part
            for name in HIDDEN
            for part in flattened(name, trained.get_parameter(name).grad)
        ]
        for matrix, grad in zip(matrices, grads, strict=True):
            matrix.grad = grad
        for each in (optimizer, oracle):
            set_lr(each, LR / (1 + step))
            each.step()
    found = [m for n in HIDDEN for m in flattened(n, trained.get_parameter(n))]
    assert_near(found, [matrix.detach() for matrix in matrices])


@pytest.mark.parametrize("name", [*OURS, *CONTROLS])
def test_a_loaded_state_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = model()
    expected = train(build(name, whole), whole, range(6))
    first = model()
    optimizer = build(name, first)
    train(optimizer, first, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    second = copy.deepcopy(first)
    resumed = build(name, second)
    # After three of a hundred gradients: sums in float64 keep their dtype.
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert all(map(torch.equal, train(resumed, second, range(3, 6)), expected))
    assert state_bytes(resumed) == state_bytes(optimizer)


@pytest.mark.parametrize("name", [*OURS, *CONTROLS])
def test_a_multiplier_survives_the_rate_that_a_loop_sets(name: str) -> None:
    def first_step(multiplier: float) -> Tensor:
        trained = model()
        optimizer = build(name, trained)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
            if group["role"] == "embedding":
                group["lr_multiplier"] = multiplier
        before = trained.embedding.weight.detach().clone()
        train(optimizer, trained, range(1))
        return trained.embedding.weight.detach() - before

    torch.testing.assert_close(first_step(6.0), 3 * first_step(2.0))


def test_rates_are_put_back_where_a_step_fails() -> None:
    trained = model()
    optimizer = build("muon-adamw", trained)
    train(optimizer, trained, range(1))
    backward(trained, 1)
    trained.embedding.weight.grad = None
    optimizer.state[trained.head.weight]["exp_avg"] = torch.zeros(1, 2, 3)
    before = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == before


@pytest.mark.parametrize("name", CONTROLS)
def test_a_closure_and_missing_gradients_are_taken(name: str) -> None:
    trained = model()
    optimizer = build(name, trained)

    def closure() -> float:
        backward(trained, 0)
        trained.hidden.weight.grad = None
        return 7.0

    before = trained.hidden.weight.detach().clone()
    assert optimizer.step(closure) == 7.0
    assert torch.equal(trained.hidden.weight, before)
    assert trained.conv.weight.grad is not None


@pytest.mark.parametrize("name", CONTROLS)
def test_a_model_without_hidden_matrices_is_refused(name: str) -> None:
    headed = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    message = f"model must have hidden matrices for {name}, got none"
    with pytest.raises(ValueError, match=message):
        build(name, headed)


def test_sgdsai_factored_has_no_other_rule() -> None:
    optimizer = build("sgdsai-factored", model())
    assert {g["scaling"] for g in optimizer.param_groups} == {"factored"}
    assert not any(g["stacked"] for g in optimizer.param_groups)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fewer_bits_take_the_same_learning_rate(
    tiny: Recipe, name: str, suffix: str
) -> None:
    [run] = plan(tiny, [f"{name}-{suffix}"], [0], {})
    assert run.lr == tiny.lrs[name]
    assert OPTIMIZERS[f"{name}-{suffix}"].steps_in_backward


@pytest.mark.parametrize("name", [*OURS, *CONTROLS])
def test_a_recipe_without_a_learning_rate_for_them_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"lr must be given for {name}, for which"):
        plan(replace(get_recipe("ddpm-digits"), lrs={"adamw": 0.1}), [name], [0], {})


@pytest.mark.parametrize("name", CONTROLS)
def test_what_needs_whole_matrices_is_refused_under_fsdp2(name: str) -> None:
    run = Run(get_recipe("vit-digits"), name, 0.1, 0)
    with pytest.raises(ValueError, match=f"strategy must be ddp with {name}"):
        prepare([run], Ranks(0, 2, "fsdp2"))


@pytest.mark.parametrize("name", OURS)
def test_momentum_takes_its_bytes(name: str) -> None:
    for suffix, most in (("", 4.05), ("-bf16", 2.05), ("-int8", 1.12), ("-int4", 0.62)):
        trained = nn.Sequential(*(nn.Linear(768, 768) for _ in range(3)))
        optimizer = build(name + suffix, trained)
        for p in trained.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        entries = sum(p.numel() for p in trained.parameters())
        assert state_bytes(optimizer) / entries < most


def carry(run: Run, folder: Path, stop_at: int | None = None) -> Outcome:
    def observe(progress: object) -> None:
        if getattr(progress, "step", 0) == stop_at:
            raise KeyboardInterrupt

    task = run.recipe.task.load()
    return carry_out(run, task, folder, torch.device("cpu"), observe)


@pytest.mark.parametrize("name", ["sgdsai-orthogonal-int4", "sgdsai-factored-int8"])
def test_a_stopped_run_goes_on_with_codes(
    name: str, tiny: Recipe, tmp_path: Path
) -> None:
    # Wide enough for a momentum in codes.
    run = Run(override(tiny, {"task.hidden_size": "64"}), name, 0.01, 3)
    whole = carry(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        carry(run, tmp_path / "stopped", stop_at=10)
    resumed = carry(run, tmp_path / "stopped")
    assert resumed.result["metrics"] == whole.result["metrics"]
    assert [line.get("loss") for line in resumed.log] == [
        line.get("loss") for line in whole.log
    ]
    assert whole.result["state_bytes"] < 3 * whole.result["num_parameters"]


@pytest.mark.parametrize("name", OURS)
def test_steps_within_the_backward_pass_give_the_same_numbers(
    name: str, tiny: Recipe, tmp_path: Path
) -> None:
    kept = override(tiny, {"clip_norm": "0"})
    released = override(kept, {"gradient_release": "true"})
    found = [carry(Run(recipe, name, 0.01, 0), tmp_path) for recipe in (kept, released)]
    assert found[0].result["metrics"] == found[1].result["metrics"]


@pytest.mark.parametrize("name", OURS)
def test_what_is_built_is_sgdsai(name: str) -> None:
    optimizer = build(f"{name}-int8", model())
    assert isinstance(optimizer, SGDSaI)
    assert {g["state_dtype"] for g in optimizer.param_groups} == {"int8"}
