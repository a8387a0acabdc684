from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saiopt import SGDSaI, get_scales
from saiopt.lab.comparison.compare import plan
from saiopt.lab.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    get_optimizer,
    set_mode,
    state_bytes,
)
from saiopt.lab.optimizers.muon import hidden_matrices
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.run import Run

WHOLE_MODEL = [n for n, spec in OPTIMIZERS.items() if "LoRA only" not in spec.source]
# Adam's decay is coupled, Prodigy's step size is not lr, an average lags behind.
FIXED_DECAY = [
    name
    for name in WHOLE_MODEL
    if name not in {"adam", "prodigy", "schedule-free-adamw"}
]


def build(
    name: str, model: nn.Module, lr: float, decay: float
) -> torch.optim.Optimizer:
    return build_optimizer(name, model, lr, decay, seed=0)


def one_step(name: str) -> torch.optim.Optimizer:
    model = nn.Linear(100, 10)
    optimizer = build(name, model, 0.1, 0.1)
    set_mode(optimizer, training=True)
    model(torch.randn(3, 100)).square().mean().backward()
    optimizer.step()
    return optimizer


def carry(run: Run, folder: Path, stop_at: int | None = None) -> Outcome:
    def observe(progress: Progress) -> None:
        if progress.step == stop_at and progress.loss is not None:
            raise KeyboardInterrupt

    task = run.recipe.task.load()
    return carry_out(run, task, folder, torch.device("cpu"), observe)


def numbers(outcome: Outcome) -> object:
    log = [
        {k: v for k, v in line.items() if not k.endswith("_seconds")}
        for line in outcome.log
    ]
    return log, outcome.result["metrics"], outcome.result["state_bytes"]


def test_an_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(
        ValueError, match=r", sgd, .*, got adamax; did you mean adam\?$"
    ):
        get_optimizer("adamax")


@pytest.mark.parametrize("name", WHOLE_MODEL)
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(
    name: str, tiny: Recipe, tmp_path: Path
) -> None:
    run = Run(tiny, name, 1.0 if name == "prodigy" else 0.01, 3)
    whole = carry(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        carry(run, tmp_path / "stopped", stop_at=10)
    assert numbers(carry(run, tmp_path / "stopped")) == numbers(whole)


@pytest.mark.parametrize("name", WHOLE_MODEL)
def test_every_optimizer_solves_a_least_squares_problem(name: str) -> None:
    lr = {"prodigy": 1.0, "sgd": 0.3, "sgdm-decoupled": 0.3, "sgdsai-gsnr-max": 0.3}
    model, inputs = nn.Linear(20, 10), torch.randn(100, 20)
    targets = nn.Linear(20, 10)(inputs).detach()
    optimizer = build(name, model, lr.get(name, 0.02), 0.0)
    losses = []
    for _ in range(200):
        set_mode(optimizer, training=True)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        set_mode(optimizer, training=False)
        losses.append((model(inputs) - targets).square().mean().item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("name", "floats", "scalars"),
    [
        ("sgdsai", 1010, 2),
        ("sgdsai-sqrt-numel", 1010, 2),
        ("sgdsai-gsnr-max", 1010, 2),
        ("sgdsai-shuffled", 1010, 2),
        ("sgdm-decoupled", 1010, 2),
        ("sgd", 1010, 0),
        ("adam", 2020, 2),
        ("adamw", 2020, 2),
        # Rows and columns of the matrix, all of the bias.
        ("adafactor", 100 + 10 + 10, 2),
        ("muon", 1000 + 20, 1),
        # A scale of each of the two blocks; the bias counts what it measures, with a
        # sum in float64.
        ("sgdsai-orthogonal", 1010, 2 + 1 + 2),
        # Scales and shares of the matrix's rows and columns.
        ("sgdsai-factored", 1010 + 2 * 110, 2 + 2 * (1 + 2)),
        ("muon-factored", 1010, 2 + 1 + 2),
        ("muon-adamw", 1000 + 20, 1),
        ("adamw-by-role", 2020, 2),
        ("lion", 1010, 0),
        # The bias starts where it was drawn, so that all four buffers are there.
        ("prodigy", 4 * 1010, 0),
        ("adam-mini", 1010 + 1 + 10, 0),
        ("schedule-free-adamw", 2020, 0),
    ],
)
def test_state_bytes_are_those_of_the_published_state(
    name: str, floats: int, scalars: int
) -> None:
    assert state_bytes(one_step(name)) == 4 * (floats + scalars)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("sgdsai", "gsnr"),
        ("sgdsai-sqrt-numel", "sqrt_numel"),
        ("sgdsai-gsnr-max", "gsnr_max"),
        ("sgdm-decoupled", "none"),
    ],
)
def test_the_controls_differ_in_their_scaling_only(name: str, scaling: str) -> None:
    optimizer = one_step(name)
    assert isinstance(optimizer, SGDSaI)
    reference = one_step("sgdsai").defaults
    assert optimizer.defaults == {**reference, "scaling": scaling}


def scales_after_a_step(name: str, seed: int) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(size, size) for size in (4, 4, 4, 4)))
    optimizer = build_optimizer(name, model, 0.1, 0.1, seed)
    model(torch.randn(3, 4)).square().mean().backward()
    optimizer.step()
    assert isinstance(optimizer, SGDSaI)
    return list(get_scales(optimizer, model).values())


def test_shuffled_scales_are_a_permutation_that_the_seed_chooses() -> None:
    own = scales_after_a_step("sgdsai", 0)
    drawn = [scales_after_a_step("sgdsai-shuffled", seed) for seed in (0, 1, 0)]
    assert sorted(drawn[0]) == sorted(own)
    assert drawn[0] != own
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]


@pytest.mark.parametrize("name", FIXED_DECAY)
def test_all_optimizers_decay_a_weight_alike(name: str) -> None:
    model = nn.Linear(30, 20, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build(name, model, 0.05, 0.04)
    for _ in range(300):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    # Coupled decay needs some steps to fill the momentum buffer: 3 % in 300 steps.
    assert model.weight.mean().item() == pytest.approx((1 - 0.002) ** 300, rel=0.03)


@pytest.mark.parametrize("name", WHOLE_MODEL)
def test_biases_do_not_decay(name: str) -> None:
    optimizer = one_step(name)
    decays = {
        p.dim(): group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decays[1] == 0
    assert decays[2] > 0


def test_muon_leaves_embeddings_and_heads_to_adamw() -> None:
    model = get_recipe("gpt-stdlib").task.load().build_model(0)
    hidden = set(hidden_matrices(model))
    names = {name for name, p in model.named_parameters() if p in hidden}
    assert len(names) == 4 * 4
    assert all(".attn." in name or ".mlp." in name for name in names)


def test_muon_goes_on_with_the_state_it_loads() -> None:
    first = one_step("muon")
    second = one_step("muon")
    for state in first.state.values():
        for value in state.values():
            value.fill_(7)
    second.load_state_dict(first.state_dict())
    for group in second.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    second.step()
    matrix = second.param_groups[0]["params"][0]
    assert second.state[matrix]["momentum_buffer"].mean() == pytest.approx(7 * 0.95)


def test_an_average_is_evaluated_and_left_again_for_training(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = Run(tiny, "schedule-free-adamw", 0.01, 0)
    assert run.schedule == "constant"
    rates = [line["lr"] for line in carry(run, tmp_path).log if "lr" in line]
    assert rates == [0.01] * tiny.steps
    assert Run(tiny, "adamw", 0.01, 0).schedule == "cosine"


def test_the_version_of_a_package_is_part_of_a_run(tiny: Recipe) -> None:
    assert Run(tiny, "lion", 0.1, 0).describe()["package"].startswith("lion-pytorch ")
    assert "package" not in Run(tiny, "adamw", 0.1, 0).describe()


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


def test_adam_mini_takes_gpt2_apart_by_heads_and_output_neurons() -> None:
    recipe = override(get_recipe("gpt-stdlib"), {"task.n_layer": "1"})
    model = recipe.task.load().build_model(0)
    optimizer = build_optimizer("adam-mini", model, 0.01, 0.0, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()

    def first_step(grad: Tensor, rows: int) -> Tensor:
        """Divide outputs, or heads of them, by the root of their mean square."""
        blocks = grad.t().reshape(rows, -1)
        moment = blocks.square().mean(1, keepdim=True)
        return (0.01 * blocks / moment.sqrt()).reshape(grad.t().shape).t()

    def moved(name: str) -> tuple[Tensor, Tensor]:
        p = model.get_parameter(name)
        assert p.grad is not None
        return before[name] - p.detach(), p.grad

    layer = "transformer.h.0."
    step, grad = moved(layer + "attn.c_attn.weight")
    for part, rows in enumerate((4, 4, 128)):
        columns = slice(part * 128, (part + 1) * 128)
        expected = first_step(grad[:, columns], rows)
        torch.testing.assert_close(step[:, columns], expected, rtol=1e-4, atol=1e-6)
    for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        step, grad = moved(f"{layer}{name}.weight")
        expected = first_step(grad, grad.shape[1])
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
    step, grad = moved("transformer.wpe.weight")
    expected = first_step(grad.t(), len(grad)).t()
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
