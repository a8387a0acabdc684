"""`"orthogonal"`: the orthogonal factor of a balanced momentum."""

import copy

import pytest
import torch
from finer_oracle import FinerOracle, balanced, newton_schulz, orthogonal_direction
from torch import nn

from saiopt import SGDSaI
from saiopt.scaling import RULES, Rule
from saiopt.scaling.orthogonal import (
    NEWTON_SCHULZ,
    balance,
    orthogonal,
)
from saiopt.scaling.orthogonal import (
    newton_schulz as iterate,
)

EXECUTIONS = {
    "chosen": {},
    "reference": {"fused": False},
    "foreach": {"foreach": True},
}
EVERY_EXECUTION = pytest.mark.parametrize(
    "execution", EXECUTIONS.values(), ids=EXECUTIONS
)
SHAPES = [(6, 6), (4, 9), (9, 4), (1, 7), (7, 1), (1, 1)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_are_those_of_the_oracle(shape, dtype):
    matrices = [random(*shape, seed=i).to(dtype) for i in range(3)]
    found = orthogonal(torch.stack(matrices))
    expected = torch.stack([orthogonal_direction(m) for m in matrices])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_rows_and_columns_of_zeros_stay_zeros():
    matrix = random(6, 5)
    matrix[2], matrix[:, 3] = 0, 0
    torch.testing.assert_close(
        balance(matrix.clone()[None])[0],
        balanced(matrix) / balanced(matrix).norm(),
        rtol=1e-5,
        atol=1e-7,
    )
    found = orthogonal(matrix.clone()[None])[0]
    torch.testing.assert_close(
        found.double(), orthogonal_direction(matrix), rtol=1e-4, atol=1e-4
    )
    assert not found[2].any()
    assert not found[:, 3].any()
    assert not orthogonal(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_the_size_of_a_momentum_does_not_matter(size):
    matrix = random(5, 8)
    found = orthogonal((size * matrix)[None])
    torch.testing.assert_close(
        found, orthogonal(matrix[None].clone()), rtol=1e-4, atol=1e-4
    )


def test_five_steps_bring_singular_values_between_two_thirds_and_five_quarters():
    found = iterate(random(40, 60)[None] / 50)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.25
    torch.testing.assert_close(
        iterate(random(3, 4)[None] / 9, 0.5), 0.5 * iterate(random(3, 4)[None] / 9)
    )


@EVERY_EXECUTION
def test_without_balance_it_is_torchs_muon(execution, monkeypatch):
    def plain(stack):
        size = 0.2 * max(stack.shape[-2:]) ** 0.5
        norms = stack.norm(dim=(-2, -1), keepdim=True)
        return iterate((stack / norms).bfloat16(), size).to(stack.dtype)

    monkeypatch.setitem(
        RULES, "orthogonal", Rule(RULES["none"].scales, direction=plain)
    )
    ours = [nn.Parameter(random(6, 9)), nn.Parameter(random(9, 6))]
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = SGDSaI(ours, scaling="orthogonal", **options, **execution)
    muon = torch.optim.Muon(
        theirs,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
        ns_coefficients=NEWTON_SCHULZ,
        **options,
    )
    for step in range(5):
        for i, (param, other) in enumerate(zip(ours, theirs, strict=True)):
            param.grad = random(*param.shape, seed=10 * step + i)
            other.grad = param.grad.clone()
        optimizer.step()
        muon.step()
        if step == 0:
            # Muon begins with m = (1-μ) g, which the direction does not see.
            for param in theirs:
                muon.state[param]["momentum_buffer"].copy_(param.grad)
    moved = (theirs[0] - random(6, 9)).norm()
    for param, other in zip(ours, theirs, strict=True):
        # Its Newton-Schulz is in bfloat16.
        assert (param - other).norm() < 0.02 * moved


@EVERY_EXECUTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_follows_the_oracle(execution, dtype):
    shapes = [(6, 9), (6, 9), (9, 6), (5, 3, 2, 2), (1, 4), (70, 65)]
    params = [nn.Parameter(random(*s, seed=i).to(dtype)) for i, s in enumerate(shapes)]
    options = {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1}
    oracle = FinerOracle(params, ["orthogonal"] * len(shapes), steps=1, **options)
    optimizer = SGDSaI(params, scaling="orthogonal", **options, **execution)
    for step in range(5):
        for i, param in enumerate(params):
            param.grad = random(*param.shape, seed=100 + 10 * step + i).to(dtype)
        if step == 0:
            params[1].grad = torch.zeros_like(params[1])
        if step == 2:
            params[0].grad = None
        optimizer.step()
        oracle.step([p.grad for p in params])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for param, exact in zip(params, oracle.params, strict=True):
        torch.testing.assert_close(
            param.double(), exact, rtol=tolerance, atol=tolerance
        )
        assert optimizer.state[param].keys() == {"scale", "momentum_buffer"}


@EVERY_EXECUTION
def test_a_convolution_moves_as_its_flattened_matrix(execution):
    weight = random(8, 3, 3, 3)
    conv, flat = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    last = nn.Parameter(weight.clone().contiguous(memory_format=torch.channels_last))
    optimizers = [
        SGDSaI([p], scaling="orthogonal", **execution) for p in (conv, flat, last)
    ]
    for step in range(3):
        conv.grad = random(8, 3, 3, 3, seed=step + 1)
        flat.grad = conv.grad.flatten(1).clone()
        last.grad = conv.grad.clone().contiguous(memory_format=torch.channels_last)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(conv.flatten(1), flat, rtol=0, atol=1e-7)
    torch.testing.assert_close(conv, last, rtol=0, atol=1e-7)


@EVERY_EXECUTION
def test_parameters_of_several_shapes_may_be_matrices_of_one(execution):
    conv, flat = nn.Parameter(random(8, 3, 2, 2)), nn.Parameter(random(8, 12))
    alone = [nn.Parameter(p.detach().clone()) for p in (conv, flat)]
    together = SGDSaI([conv, flat], scaling="orthogonal", **execution)
    each = [SGDSaI([p], scaling="orthogonal", **execution) for p in alone]
    for step in range(3):
        for param, copied in zip((conv, flat), alone, strict=True):
            param.grad = random(*param.shape, seed=step)
            copied.grad = param.grad.clone()
        for optimizer in (together, *each):
            optimizer.step()
    for param, copied in zip((conv, flat), alone, strict=True):
        torch.testing.assert_close(param, copied, rtol=0, atol=1e-6)


@EVERY_EXECUTION
def test_stacked_matrices_move_as_each_by_itself(execution):
    stack = nn.Parameter(random(3, 5, 4))
    alone = [nn.Parameter(m.clone()) for m in stack.detach()]
    group = {"params": [stack], "stacked": True}
    whole = SGDSaI([group], scaling="orthogonal", **execution)
    each = SGDSaI(alone, scaling="orthogonal", **execution)
    for step in range(3):
        stack.grad = random(3, 5, 4, seed=step)
        for param, grad in zip(alone, stack.grad, strict=True):
            param.grad = grad.clone()
        whole.step()
        each.step()
    torch.testing.assert_close(stack, torch.stack(list(alone)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
def test_the_step_of_one_parameter_is_that_of_all(state_dtype):
    ours = [nn.Parameter(random(70, 65)), nn.Parameter(random(70, 65, seed=1))]
    others = copy.deepcopy(ours)
    options = {"scaling": "orthogonal", "state_dtype": state_dtype}
    together, apart = SGDSaI(ours, **options), SGDSaI(others, **options)
    for step in range(3):
        for i, (param, other) in enumerate(zip(ours, others, strict=True)):
            param.grad = random(70, 65, seed=10 * step + i)
            other.grad = param.grad.clone()
            apart.step_parameter(other, apart.param_groups[0], i)
        together.step()
    for param, other in zip(ours, others, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(5,), ()])
def test_what_is_no_matrix_is_refused(shape):
    param = nn.Parameter(torch.ones(shape))
    message = "scaling must not be 'orthogonal' for parameters of fewer than two dimens"
    with pytest.raises(ValueError, match=message):
        SGDSaI([("norm.weight", param)], scaling="orthogonal")
    optimizer = SGDSaI([("norm.weight", param)], scaling="none")
    optimizer.param_groups[0]["scaling"] = "orthogonal"
    param.grad = torch.ones(shape)
    with pytest.raises(ValueError, match=r"got 'norm.weight' of shape"):
        optimizer.step()
    assert torch.equal(param, torch.ones(shape))


def test_only_what_has_three_dimensions_can_be_a_stack():
    group = {"params": [nn.Parameter(torch.ones(3, 3))], "stacked": True}
    with pytest.raises(
        ValueError, match="stacked must be False for parameters of fewer"
    ):
        SGDSaI([group], scaling="orthogonal")


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "2", True])
def test_a_multiplier_must_be_a_number_above_zero(value):
    group = {"params": [nn.Parameter(torch.ones(2, 2))], "lr_multiplier": value}
    with pytest.raises((ValueError, TypeError), match="lr_multiplier must be"):
        SGDSaI([group])


@EVERY_EXECUTION
@pytest.mark.parametrize("scaling", ["gsnr", "factored", "orthogonal"])
def test_a_multiplier_scales_the_step_and_not_the_decay(scaling, execution):
    ours, others = (nn.Parameter(random(70, 6)) for _ in range(2))
    options = {"scaling": scaling, "weight_decay": 0.1, **execution}
    multiplied = SGDSaI([{"params": [ours], "lr_multiplier": 4.0}], lr=0.01, **options)
    # A loop that sets the rate does not undo it.
    multiplied.param_groups[0]["lr"] = 0.02
    plain = SGDSaI([others], lr=0.08, **{**options, "weight_decay": 0.025})
    for step in range(3):
        ours.grad = random(70, 6, seed=step + 1)
        others.grad = ours.grad.clone()
        multiplied.step()
        plain.step()
    torch.testing.assert_close(ours, others, rtol=0, atol=1e-6)


def test_the_oracle_moves_singular_values_only():
    matrix = random(4, 6).double()
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ newton_schulz(matrix) @ vt.T
    torch.testing.assert_close(inside, torch.diag(inside.diag()), rtol=0, atol=1e-12)
