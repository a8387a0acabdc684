"""Each way in which published implementations of SGD-SaI fail, as a test.

The names are the rows of the table in docs/differences.md.
"""

import copy
import math
import pickle

import pytest
import torch
from models import LoRALinear, TinyTransformer, next_token_loss, token_batches
from oracle import Oracle
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.utils._python_dispatch import TorchDispatchMode

from saiopt import SGDSaI, get_scales, set_scales


def train(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()


def param_with(grad, value=1.0):
    grad = torch.as_tensor(grad)
    param = nn.Parameter(torch.full_like(grad, value))
    param.grad = grad.clone()
    return param


def test_momentum_zero_steps_along_the_gradient():
    param = param_with([1.0, 2.0, 4.0])
    SGDSaI([param], 0.1, momentum=0.0, weight_decay=0.0, scaling="none").step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.9, 0.8, 0.6]))


def test_a_one_entry_parameter_scales_by_one():
    for grad in (torch.tensor(1e-3), torch.tensor([1e3])):
        param = param_with(grad)
        optimizer = SGDSaI([param])
        optimizer.step()
        assert optimizer.state[param]["scale"] == 1


def test_a_gradient_of_equal_entries_scales_by_the_root_of_its_size():
    param = param_with(torch.full((16,), 0.3))
    optimizer = SGDSaI([param])
    optimizer.step()
    assert optimizer.state[param]["scale"] == 4


def test_lora_a_calibrates_at_its_first_non_zero_gradient_and_trains():
    model = LoRALinear()
    optimizer = SGDSaI([model.a, model.b], 1e-2)
    before = model.a.detach().clone()
    x, target = torch.randn(32, 6), torch.randn(32, 6)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == 1:
            assert get_scales(optimizer, model)["a"] == 0
            torch.testing.assert_close(model.a.detach(), before * (1 - 1e-4))
    assert get_scales(optimizer, model)["a"] >= math.sqrt(model.a.numel() - 1)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("execution", [{"foreach": False}, {"foreach": True}])
def test_a_dummy_step_with_zero_gradients_and_rate_changes_nothing(execution, dtype):
    plain = TinyTransformer().to(dtype)
    dummied = copy.deepcopy(plain)
    optimizers = [SGDSaI(m.parameters(), 1e-3, **execution) for m in (plain, dummied)]
    for param in dummied.parameters():
        param.grad = torch.zeros_like(param)
    optimizers[1].param_groups[0]["lr"] = 0.0
    optimizers[1].step()
    optimizers[1].param_groups[0]["lr"] = 1e-3
    train(plain, optimizers[0], token_batches(3))
    train(dummied, optimizers[1], token_batches(3))
    for p, q in zip(plain.parameters(), dummied.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_asking_for_a_distributed_checkpoint_before_training_changes_nothing(dtype):
    plain = TinyTransformer().to(dtype)
    asked = copy.deepcopy(plain)
    optimizers = [SGDSaI(m.parameters(), 1e-3) for m in (plain, asked)]
    saved = get_optimizer_state_dict(asked, optimizers[1])
    assert all(entry["scale"] == 0 for entry in saved["state"].values())
    train(plain, optimizers[0], token_batches(3))
    train(asked, optimizers[1], token_batches(3))
    for p, q in zip(plain.parameters(), asked.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("execution", [{"foreach": False}, {"foreach": True}])
def test_a_gradient_that_comes_late_calibrates_then(execution):
    early, late = param_with([1.0, 2.0]), param_with([5.0, 1.0, 1.0])
    late_grad, late.grad = late.grad, None
    optimizer = SGDSaI([early, late], **execution)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(late, torch.ones(3))
    late.grad = late_grad
    optimizer.step()
    alone = param_with(late_grad)
    SGDSaI([alone], **execution).step()
    assert torch.equal(late, alone)


def test_a_group_that_is_added_late_calibrates_then():
    early, late = param_with([1.0, 2.0]), param_with([5.0, 1.0, 1.0])
    optimizer = SGDSaI([early])
    optimizer.step()
    scale = optimizer.state[early]["scale"].clone()
    optimizer.add_param_group({"params": [late]})
    optimizer.step()
    alone = param_with([5.0, 1.0, 1.0])
    SGDSaI([alone]).step()
    assert torch.equal(late, alone)
    assert torch.equal(optimizer.state[early]["scale"], scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("execution", [{"foreach": False}, {"foreach": True}])
def test_a_first_gradient_that_is_not_finite_is_survived(bad, execution):
    param = param_with([1.0, 2.0, 5.0])
    good = param.grad.clone()
    param.grad[1] = bad
    optimizer = SGDSaI([param], 0.1, weight_decay=0.5, **execution)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.95))
    assert not optimizer.state[param]["momentum_buffer"].any()
    param.grad = good
    optimizer.step()
    oracle = Oracle([torch.full((3,), 0.95)], lr=0.1, momentum=0.9, weight_decay=0.5)
    oracle.step([good])
    torch.testing.assert_close(param.detach().double(), oracle.params[0])


def test_a_step_that_the_gradient_scaler_skips_is_survived():
    param = param_with([1.0, 2.0, 5.0])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer = SGDSaI([param], 0.1)
    param.grad = torch.tensor([1.0, math.inf, 1.0])
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param, torch.ones(3))
    param.grad = torch.tensor([1.0, 2.0, 5.0])
    scaler.step(optimizer)
    alone = param_with([1.0, 2.0, 5.0])
    SGDSaI([alone], 0.1).step()
    torch.testing.assert_close(param, alone)


def test_a_resume_does_not_measure_again():
    param = param_with([1.0, 2.0, 5.0])
    optimizer = SGDSaI([param])
    optimizer.step()
    resumed = SGDSaI([param])
    resumed.load_state_dict(optimizer.state_dict())
    param.grad = torch.tensor([9.0, -4.0, 0.0])
    resumed.step()
    held = optimizer.state[param]["scale"]
    assert torch.equal(resumed.state[param]["scale"], held)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_of_the_optimizer_can_step(clone):
    param = param_with([1.0, 2.0, 5.0])
    optimizer = SGDSaI([param])
    optimizer.step()
    copied = clone(optimizer)
    twin = copied.param_groups[0]["params"][0]
    twin.grad = param.grad.clone()
    optimizer.step()
    copied.step()
    assert torch.equal(param, twin)


def test_the_closure_is_evaluated_once_with_gradients():
    model, calls = nn.Linear(3, 1), []
    optimizer = SGDSaI(model.parameters())

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert calls == [True]
    assert loss > 0


@pytest.mark.parametrize("foreach", [False, True, None])
def test_a_compiled_step_equals_the_eager_one_and_calibrates_once(foreach):
    eager = TinyTransformer()
    compiled = copy.deepcopy(eager)
    late = [model.head.bias for model in (eager, compiled)]
    for bias in late:
        bias.requires_grad_(False)
    optimizers = [
        SGDSaI(m.parameters(), 1e-3, foreach=foreach) for m in (eager, compiled)
    ]
    step = torch.compile(optimizers[1].step, backend="aot_eager")
    scales = []
    for number, ids in enumerate(token_batches(6)):
        if number == 3:
            for bias in late:
                bias.requires_grad_(True)
        for model, optimizer, take in (
            (eager, optimizers[0], optimizers[0].step),
            (compiled, optimizers[1], step),
        ):
            optimizer.zero_grad()
            next_token_loss(model, ids).backward()
            take()
        scales.append(get_scales(optimizers[1], compiled))
    assert scales[0] == scales[2]
    assert scales[2]["head.bias"] == 0
    assert scales[3]["head.bias"] == scales[5]["head.bias"] > 0
    for p, q in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("kind", ["float", "tensor"])
def test_a_schedule_compiles_as_often_however_often_the_rate_changes(kind, foreach):
    torch._dynamo.reset()
    model = TinyTransformer()
    lr = torch.tensor(1e-3) if kind == "tensor" else 1e-3
    optimizer = SGDSaI(model.parameters(), lr, foreach=foreach)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for number, ids in enumerate(token_batches(6)):
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        if kind == "tensor":
            lr.mul_(0.9)
        else:
            optimizer.param_groups[0]["lr"] = 1e-3 * 0.9**number
        step()
    # The step that calibrates is not traced; a float that varies is traced once more.
    assert counter.frame_count == (1 if kind == "tensor" else 2)


def test_bfloat16_weights_move_by_steps_below_their_spacing():
    grad = torch.randn(1024)
    wide, narrow = param_with(grad), param_with(grad.bfloat16())
    for param in (wide, narrow):
        optimizer = SGDSaI([param], 1e-6, weight_decay=0.0)
        for _ in range(100):
            optimizer.step()
    # The float32 entries move by about 3e-3, less than half a spacing of bfloat16.
    error = (narrow.float() - wide).mean().item()
    assert (wide - 1).abs().mean() > 1e-3
    assert abs(error) < 5 * 2**-8 * (0.25 / 1024) ** 0.5


def test_a_float16_gradient_norm_above_65504_gives_a_finite_scale():
    param = param_with(torch.linspace(-6e4, 6e4, 1000).half())
    optimizer = SGDSaI([param], 0.0)
    optimizer.step()
    expected = math.sqrt(999)
    assert optimizer.state[param]["scale"].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("execution", [{"foreach": False}, {"foreach": True}])
def test_maximizing_mirrors_minimizing_and_leaves_the_gradient_alone(execution):
    up, down = param_with([1.0, -2.0, 5.0], 0.0), param_with([1.0, -2.0, 5.0], 0.0)
    for _ in range(3):
        for param, maximize in ((up, True), (down, False)):
            SGDSaI([param], 0.1, maximize=maximize, **execution).step()
    assert torch.equal(up, -down)
    assert torch.equal(up.grad, torch.tensor([1.0, -2.0, 5.0]))


def test_nothing_is_printed(capfd):
    param = param_with([1.0, -2.0, 5.0])
    optimizer = SGDSaI([param])
    optimizer.step()
    optimizer.step()
    assert capfd.readouterr() == ("", "")


class HostReads(TorchDispatchMode):
    """Counts the operators that wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        self.count += function.overloadpacket in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("execution", [{"foreach": False}, {"foreach": True}])
def test_no_scalar_is_read_on_the_host_once_all_blocks_run(execution):
    params = [param_with(torch.randn(n)) for n in (1, 5, 7)]
    optimizer = SGDSaI(params, torch.tensor(1e-2), **execution)
    optimizer.step()
    with HostReads() as reads:
        optimizer.step()
    assert reads.count == 0


def test_the_counter_of_host_reads_counts():
    with HostReads() as reads:
        torch.ones(()).item()
    assert reads.count == 1


def test_a_preset_scale_starts_the_momentum_at_the_first_usable_gradient():
    calibrated, preset = nn.Linear(4, 2), None
    preset = copy.deepcopy(calibrated)
    optimizers = [SGDSaI(m.parameters()) for m in (calibrated, preset)]
    grads = [torch.randn(2, 4), torch.randn(2)]
    for model in (calibrated, preset):
        model.weight.grad, model.bias.grad = grads[0].clone(), grads[1].clone()
    optimizers[0].step()
    set_scales(optimizers[1], preset, get_scales(optimizers[0], calibrated))
    for param in preset.parameters():
        assert optimizers[1].state[param]["scale"] < 0
    optimizers[1].step()
    optimizers[0].step()
    optimizers[1].step()
    for p, q in zip(calibrated.parameters(), preset.parameters(), strict=True):
        assert torch.equal(p, q)
