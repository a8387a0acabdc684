import layouts
import pytest
import row_rule
import torch
from layouts import LAYOUTS
from resuming import resumed
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from saiopt import SGDSaI, get_scales, set_scales
from saiopt.scaling import RULES, Measurement, Rule, Scales
from saiopt.update import library

EXECUTIONS = {
    "chosen": {},
    "reference": {"fused": False},
    "foreach": {"foreach": True},
}
EVERY_EXECUTION = pytest.mark.parametrize(
    "execution", EXECUTIONS.values(), ids=EXECUTIONS
)
SHAPES = [(6, 8), (5,), (4, 3, 2, 2), (70, 65), ()]
MEASURING = {"row_mean": 3, "factored": 2}
OPTIONS = {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1, "scaling": "row_mean"}


@pytest.fixture(autouse=True)
def _known_rules():
    with row_rule.known():
        yield


def params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape in SHAPES
    ]


def gradients(step, dtype=torch.float32):
    """Gradients of a step; some are zero, absent or not finite."""
    generator = torch.Generator().manual_seed(100 + step)
    grads = [torch.randn(s, generator=generator).to(dtype) for s in SHAPES]
    if step == 0:
        grads[0] = torch.zeros_like(grads[0])
    if step == 1:
        grads[1] = None
    return grads


def run(optimizer, blocks, steps):
    for step in steps:
        for param, grad in zip(blocks, gradients(step, blocks[0].dtype), strict=True):
            param.grad = grad
        optimizer.step()


@EVERY_EXECUTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rule_with_a_scale_per_row_over_three_gradients_follows_its_oracle(
    execution, dtype
):
    blocks = params(dtype)
    oracle = row_rule.RowMeanOracle(blocks, 0.01, 0.8, 0.1)
    optimizer = SGDSaI(blocks, **OPTIONS, **execution)
    for step in range(8):
        run(optimizer, blocks, [step])
        oracle.step(gradients(step, dtype))
        for param, exact in zip(blocks, oracle.params, strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 1e-6
            torch.testing.assert_close(
                param.double(), exact, rtol=tolerance, atol=tolerance
            )
    counts = [entry["num_measured"].item() for entry in optimizer.state.values()]
    assert counts == [3] * len(SHAPES)


def test_without_a_compiler_it_follows_too(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: "nothing works")
    blocks, others = params(), params()
    run(SGDSaI(blocks, **OPTIONS), blocks, range(6))
    run(SGDSaI(others, **OPTIONS, fused=False), others, range(6))
    for param, other in zip(blocks, others, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.int8, "int4"])
def test_low_bit_momentum_takes_scales_of_rows(state_dtype):
    blocks, exact = params(), params()
    optimizer = SGDSaI(blocks, **OPTIONS, state_dtype=state_dtype)
    run(optimizer, blocks, range(12))
    run(SGDSaI(exact, **OPTIONS), exact, range(12))
    moved = (exact[3] - params()[3]).norm()
    assert (blocks[3] - exact[3]).norm() < 0.2 * moved
    assert optimizer.state[blocks[3]]["row_scale"].shape == (70,)


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("state_dtype", [None, "int4"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resume_in_the_middle_of_the_measurement_is_bit_exact(how, state_dtype, stop):
    blocks = params()
    optimizer = SGDSaI(blocks, **OPTIONS, state_dtype=state_dtype)
    run(optimizer, blocks, range(stop))
    twins, other = resumed(
        how, blocks, optimizer, lambda twins: SGDSaI(twins, scaling="row_mean")
    )
    run(optimizer, blocks, range(stop, 8))
    run(other, twins, range(stop, 8))
    for param, twin in zip(blocks, twins, strict=True):
        assert torch.equal(param, twin)
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, other.state[twin][key])


def test_the_step_of_one_parameter_measures_as_step_does():
    blocks, others = params(), params()
    run(SGDSaI(blocks, **OPTIONS), blocks, range(6))
    optimizer = SGDSaI(others, **OPTIONS)
    for step in range(6):
        for param, grad in zip(others, gradients(step), strict=True):
            param.grad = grad
            if grad is not None:
                optimizer.step_parameter(param, optimizer.param_groups[0], 0)
    for param, other in zip(blocks, others, strict=True):
        assert torch.equal(param, other)


@EVERY_EXECUTION
def test_a_direction_of_the_whole_matrix_takes_the_momentums_place(execution):
    param = nn.Parameter(torch.randn(4, 6))
    exact = param.detach().double().clone()
    optimizer = SGDSaI(
        [param], 0.1, 0.5, weight_decay=0.1, scaling="along", **execution
    )
    momentum = None
    for step in range(3):
        grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        param.grad = grad
        optimizer.step()
        momentum = grad.double() if momentum is None else (momentum + grad) / 2
        ahead = (momentum + grad) / 2
        exact = exact * (1 - 0.1 * 0.1) - 0.1 * ahead / ahead.norm(dim=1).max()
    torch.testing.assert_close(param.double(), exact, rtol=1e-5, atol=1e-6)


def whole_gradient(param, step, index):
    generator = torch.Generator().manual_seed(10 * step + index)
    whole = torch.randn(param.shape, generator=generator, dtype=param.dtype)
    if isinstance(param, DTensor):
        mesh, placements = param.device_mesh, param.placements
        return distribute_tensor(whole, mesh, placements, src_data_rank=None)
    return whole


def train_layout(name, rule):
    """Parameters, scales and state after some steps, whole, on this rank."""
    with row_rule.known():
        return trained(name, rule)


def trained(name, rule):
    spread = LAYOUTS[name].spread if name else (lambda net: net)
    model = spread(layouts.make_net())
    options = {**OPTIONS, "scaling": rule, "calibration_steps": MEASURING[rule]}
    optimizer = SGDSaI(model.parameters(), **options)
    sent = []
    for step in range(6):
        for index, param in enumerate(model.parameters()):
            param.grad = whole_gradient(param, step, index)
        with layouts.Collectives() as collectives:
            optimizer.step()
        sent.append(collectives.count)
    full = lambda t: t.full_tensor() if isinstance(t, DTensor) else t  # noqa: E731
    return sent, {
        key: [full(param).detach(), *map(full, optimizer.state[param].values())]
        for key, param in model.named_parameters()
    }


@pytest.mark.parametrize("name", ["FSDP2", "FSDP2, empty shards", "TP", "FSDP2 + TP"])
def test_finer_scales_on_a_layout_are_those_of_one_process(workers, name):
    for rule, measuring in MEASURING.items():
        _, expected = trained(None, rule)
        world = LAYOUTS[name].world
        for sent, found in workers.run(world, train_layout, name, rule):
            assert set(sent[:measuring]) == {2 if "+" in name else 1}
            assert not any(sent[measuring:])
            for key, tensors in expected.items():
                for value, exact in zip(found[key], tensors, strict=True):
                    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-9)


def test_a_block_whose_rule_comes_to_measure_more_begins_anew():
    param = nn.Parameter(torch.ones(5, 7))
    optimizer = SGDSaI([param], scaling="none")
    param.grad = torch.randn(5, 7)
    optimizer.step()
    optimizer.param_groups[0]["scaling"] = "factored"
    param.grad = torch.zeros(5, 7)
    optimizer.step()
    assert optimizer.state[param]["scale"] == 0
    param.grad = torch.randn(5, 7)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)
    assert optimizer.state[param]["num_measured"] == 1


def test_a_rule_that_returns_scales_of_another_shape_is_refused():
    wrong = Rule(
        measurement=Measurement(
            torch.abs,
            lambda shape: ("row",),
            lambda sums: Scales(torch.ones(()), row=torch.ones(3)),
        )
    )
    param = nn.Parameter(torch.ones(5, 7))
    param.grad = torch.randn(5, 7)
    RULES["wrong"] = wrong
    optimizer = SGDSaI([param], scaling="wrong")
    with pytest.raises(ValueError, match=r"scales of the rows of shape \(5,\), got"):
        optimizer.step()
    del RULES["wrong"]
    assert torch.equal(param, torch.ones(5, 7))


def test_finer_scales_cannot_be_set_by_one_number():
    model = nn.Linear(3, 2)
    optimizer = SGDSaI(model.parameters(), scaling="row_mean")
    with pytest.raises(ValueError, match=r"must be Scales of shapes row \(2,\), or 0"):
        set_scales(optimizer, model, {"bias": 3.0, "weight": 2.0})
    assert get_scales(optimizer, model) == {"weight": 0.0, "bias": 0.0}


RULES_IN_TURN = ["gsnr", "orthogonal", "factored", "gsnr", "factored", "orthogonal"]


@pytest.mark.parametrize("saves", [False, True])
def test_blocks_begin_anew_under_another_rule(saves):
    param = nn.Parameter(torch.ones(5, 7))
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = SGDSaI([param], **options)
    for count, scaling in enumerate([*RULES_IN_TURN, "gsnr"]):
        if saves:
            saved = optimizer.state_dict()
            optimizer = SGDSaI([param], **options)
            optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["scaling"] = scaling
        twin = nn.Parameter(param.detach().clone())
        fresh = SGDSaI([twin], **options, scaling=scaling)
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * count + step)
            param.grad = torch.randn(5, 7, generator=generator)
            twin.grad = param.grad.clone()
            optimizer.step()
            fresh.step()
        assert torch.equal(param, twin)
        assert optimizer.state[param].keys() == fresh.state[twin].keys()


def test_a_state_of_the_first_release_begins_anew_under_a_finer_rule():
    param = nn.Parameter(torch.ones(5, 7))
    optimizer = SGDSaI([param], lr=0.01)
    param.grad = torch.randn(5, 7)
    optimizer.step()
    saved = optimizer.state_dict()
    for key in ("scaled_by", "replicated", "bucket_cap_mb", "calibration_steps"):
        del saved["param_groups"][0][key]
    resumed = SGDSaI([param], scaling="orthogonal")
    resumed.load_state_dict(saved)
    # What was saved decides, as with every optimizer of torch.
    assert resumed.param_groups[0]["scaling"] == "gsnr"
    resumed.param_groups[0]["scaling"] = "orthogonal"
    param.grad = torch.randn(5, 7)
    resumed.step()
    assert resumed.state[param]["scale"] == 1
    assert torch.equal(resumed.state[param]["momentum_buffer"], param.grad)
