"""`"factored"`: one scale per row and column, measured over K gradients."""

import pytest
import torch
from finer_oracle import PHI, FinerOracle, factored_scales
from resuming import resumed
from torch import nn

from saiopt import SGDSaI
from saiopt.update import library

EXECUTIONS = {
    "chosen": {},
    "reference": {"fused": False},
    "foreach": {"foreach": True},
}
EVERY_EXECUTION = pytest.mark.parametrize(
    "execution", EXECUTIONS.values(), ids=EXECUTIONS
)


def scales_of(grads, **options):
    """What one entry of a gradient moves its parameter by, in units of lr."""
    param = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = SGDSaI(
        [param],
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        scaling="factored",
        **{"calibration_steps": len(grads), **options},
    )
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    before = param.detach().clone()
    param.grad = torch.ones_like(param)
    optimizer.step()
    return (before - param.detach()).double(), optimizer.state[param]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@EVERY_EXECUTION
@pytest.mark.parametrize(
    "shape", [(5, 7), (1, 9), (9, 1), (4, 3, 2, 2), (3, 4, 5), (6,), (1,), ()]
)
@pytest.mark.parametrize("count", [1, 3])
def test_scales_are_those_of_the_oracle(shape, count, execution):
    grads = [random(*shape, seed=i) for i in range(count)]
    found, entry = scales_of(grads, **execution)
    expected = factored_scales(grads).expand(shape)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)
    assert entry["num_measured"] == count


def test_a_gradient_of_rank_one_moves_every_entry_by_the_learning_rate():
    rows, columns = random(6).abs() + 0.5, random(8, seed=1).abs() + 0.5
    grad = rows[:, None] * columns
    found, _ = scales_of([grad])
    torch.testing.assert_close(
        found * grad, torch.ones(6, 8).double(), rtol=1e-5, atol=0
    )


def test_rows_that_never_had_a_gradient_are_scaled_as_a_tenth_of_the_others():
    grad = random(6, 8)
    grad[2:] = 0
    found, _ = scales_of([grad])
    column = grad.double().square().mean(0)
    mean = column.mean()
    expected = (PHI**2 * mean * column / mean).rsqrt()
    torch.testing.assert_close(found[4], expected, rtol=1e-5, atol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("shape", [(4, 6), (5,)])
def test_gradients_of_any_size_move_by_the_learning_rate(size, shape):
    grad = torch.full(shape, size)
    param = nn.Parameter(torch.zeros(shape))
    optimizer = SGDSaI([param], 1.0, weight_decay=0.0, scaling="factored")
    param.grad = grad
    optimizer.step()
    # The scale of the smallest is beyond float32.
    expected = min(1.0, torch.finfo(torch.float32).max * size)
    torch.testing.assert_close(-param.detach(), torch.full(shape, expected))


@EVERY_EXECUTION
def test_only_usable_gradients_are_counted(execution):
    rules = ["factored"] * 3
    params = [
        nn.Parameter(random(4, 6)),
        nn.Parameter(random(5)),
        nn.Parameter(random(3, 3)),
    ]
    oracle = FinerOracle(
        params, rules, lr=0.01, momentum=0.8, weight_decay=0.1, steps=3
    )
    optimizer = SGDSaI(
        params,
        0.01,
        0.8,
        weight_decay=0.1,
        scaling="factored",
        calibration_steps=3,
        **execution,
    )
    for step in range(9):
        for i, param in enumerate(params):
            param.grad = random(*param.shape, seed=10 * step + i)
        if step in (0, 2):
            params[0].grad = torch.zeros(4, 6)
        if step < 4:
            params[1].grad = None
        # What is not usable is not counted; in a block that has begun it would stay
        # in the momentum, as in every optimizer.
        if step == 0:
            params[2].grad[1, 1] = float("nan")
        optimizer.step()
        oracle.step([p.grad for p in params])
    for param, exact in zip(params, oracle.params, strict=True):
        torch.testing.assert_close(param.double(), exact, rtol=1e-5, atol=1e-6)
    counts = [optimizer.state[p]["num_measured"].item() for p in params]
    assert counts == [3, 3, 3]


def test_a_dummy_step_measures_but_moves_nothing():
    param = nn.Parameter(random(4, 6))
    before = param.detach().clone()
    optimizer = SGDSaI([param], lr=0.0, scaling="factored", calibration_steps=5)
    param.grad = torch.zeros(4, 6)
    optimizer.step()
    assert optimizer.state[param]["num_measured"] == 0
    param.grad = random(4, 6, seed=1)
    optimizer.step()
    assert torch.equal(param, before)


def test_what_is_unfrozen_later_measures_its_own_first_gradients():
    frozen, other = nn.Parameter(random(4, 6)), nn.Parameter(random(4, 6))
    frozen.requires_grad_(False)
    optimizer = SGDSaI(
        [frozen, other], scaling="factored", calibration_steps=2, weight_decay=0.0
    )
    for step in range(6):
        if step == 3:
            frozen.requires_grad_(True)
        for i, param in enumerate((frozen, other)):
            param.grad = (
                random(4, 6, seed=step + 100 * i) if param.requires_grad else None
            )
        optimizer.step()
    twin = nn.Parameter(random(4, 6))
    alone = SGDSaI([twin], scaling="factored", calibration_steps=2, weight_decay=0.0)
    for step in range(3, 6):
        twin.grad = random(4, 6, seed=step)
        alone.step()
    assert torch.equal(frozen, twin)


def test_a_step_that_a_grad_scaler_skips_is_not_counted():
    param = nn.Parameter(random(4, 6))
    optimizer = SGDSaI([param], scaling="factored", calibration_steps=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value in (1.0, float("inf"), 2.0):
        scaler.scale(torch.ones(()))  # makes its tensors
        param.grad = 4.0 * value * random(4, 6, seed=int(min(value, 9)))
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state[param]["num_measured"] == 2


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resume_at_any_step_is_bit_exact(how, state_dtype, stop):
    def run(params, optimizer, steps):
        for step in steps:
            for i, param in enumerate(params):
                param.grad = random(*param.shape, seed=10 * step + i)
            optimizer.step()

    options = {"scaling": "factored", "calibration_steps": 4}
    params = [nn.Parameter(random(70, 65)), nn.Parameter(random(7))]
    optimizer = SGDSaI(params, state_dtype=state_dtype, **options)
    run(params, optimizer, range(stop))
    twins, other = resumed(how, params, optimizer, SGDSaI)
    run(params, optimizer, range(stop, 8))
    run(twins, other, range(stop, 8))
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, other.state[twin][key])


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.int8, "int4"])
def test_low_bit_momentum_takes_the_same_scales(state_dtype, monkeypatch):
    found = {}
    for loaded in (True, False):
        if not loaded:
            monkeypatch.setattr(library, "load", lambda: "nothing works")
        param = nn.Parameter(random(70, 65))
        optimizer = SGDSaI(
            [param], scaling="factored", calibration_steps=2, state_dtype=state_dtype
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("warnings.warn", lambda *_, **__: None)
            for step in range(4):
                param.grad = random(70, 65, seed=step)
                optimizer.step()
        found[loaded] = param.detach(), optimizer.state[param]["momentum_buffer"]
    torch.testing.assert_close(*(found[k][0] for k in found), rtol=1e-5, atol=1e-6)
    assert torch.equal(*(found[k][1] for k in found))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "calibration_steps must be at least 1, got 0"),
        (-3, ValueError, "calibration_steps must be at least 1, got -3"),
        (2.5, TypeError, "calibration_steps must be a whole number, got 2.5"),
        (True, TypeError, "calibration_steps must be a whole number, got True"),
    ],
)
def test_a_wrong_number_of_gradients_is_refused(value, error, message):
    param = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(error, match=message):
        SGDSaI([param], scaling="factored", calibration_steps=value)
    optimizer = SGDSaI([param], scaling="factored")
    optimizer.param_groups[0]["calibration_steps"] = value
    param.grad = torch.ones(2, 2)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(param, torch.ones(2, 2))


@pytest.mark.parametrize("scaling", ["gsnr", "gsnr_max", lambda moments: moments.numel])
def test_the_papers_rules_measure_one_gradient(scaling):
    param = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(
        ValueError, match="calibration_steps must be None or 1 for a sc"
    ):
        SGDSaI([param], scaling=scaling, calibration_steps=2)
    SGDSaI([param], scaling=scaling, calibration_steps=1)


def test_calibration_steps_serve_the_groups_that_measure():
    groups = [
        {"params": [nn.Parameter(torch.ones(2, 2))], "scaling": name}
        for name in ("orthogonal", "factored", "none")
    ]
    SGDSaI(groups, calibration_steps=7)
