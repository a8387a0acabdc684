import pytest
import torch
import torch.distributed as dist
from models import LoRALinear, TinyTransformer, next_token_loss, token_batches
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from workers import forget_meshes

from saiopt import SGDSaI
from saiopt.memory import OptimizerError, estimate
from saiopt.optimizer.options import STATE_DTYPES


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


def train_transformer(model, dtype):
    next_token_loss(model, token_batches(1)[0]).backward()


def train_convolutions(model, dtype):
    model(torch.randn(2, 3, 5, 5, dtype=dtype)).square().sum().backward()


def train_lora(model, dtype):
    model(torch.randn(4, 6, dtype=dtype)).square().sum().backward()


MODELS = {
    "transformer": (TinyTransformer, train_transformer),
    "convolutions": (conv_net, train_convolutions),
    "lora": (LoRALinear, train_lora),
}
OPTIMIZERS = {
    "sgdsai": SGDSaI,
    "sgdsai-no-momentum": lambda p: SGDSaI(p, momentum=0.0),
    "sgdsai-float32": lambda p: SGDSaI(p, state_dtype=torch.float32),
    "sgdsai-bfloat16": lambda p: SGDSaI(p, state_dtype=torch.bfloat16),
    "sgd": torch.optim.SGD,
    "sgdm": lambda p: torch.optim.SGD(p, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamw-amsgrad-lists": lambda p: torch.optim.AdamW(p, amsgrad=True, foreach=True),
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "nadam": torch.optim.NAdam,
}


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def state_bytes(optimizer):
    return bytes_of(
        value
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("model_name", MODELS)
def test_the_estimate_is_what_a_real_step_allocates(model_name, optimizer_name, dtype):
    build, train = MODELS[model_name]
    factory = OPTIMIZERS[optimizer_name]
    model = build()
    train(model, torch.float32)
    model.zero_grad()
    model.to(dtype)
    found = estimate(model, factory)
    train(model, dtype)
    optimizer = factory([p for p in model.parameters() if p.requires_grad])
    optimizer.step()
    assert found.state.tensor_bytes == state_bytes(optimizer)
    assert found.weights.tensor_bytes == bytes_of(model.parameters())
    assert found.buffers.tensor_bytes == bytes_of(model.buffers())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert found.gradients.tensor_bytes == bytes_of(grads)


def test_an_expanded_buffer_counts_once():
    model = nn.Linear(3, 2)
    model.register_buffer("row", torch.zeros(10).expand(500, 10))
    found = estimate(model, lambda params: SGDSaI(params), dtype=torch.bfloat16)
    assert found.buffers.tensor_bytes == 20


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("adam_mini", "Adam_mini"),
        ("lion_pytorch", "Lion"),
        ("prodigyopt", "Prodigy"),
        ("sgd_sai", "SGD_sai"),
    ],
)
def test_the_estimate_holds_for_packages(module, name):
    build = getattr(pytest.importorskip(module), name)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    names = [f"layer.{i}.weight" for i in range(4)]

    def factory(params):
        if module == "adam_mini":
            return build(list(zip(names, params, strict=True)), verbose=False)
        return build(params)

    found = estimate(model, factory)
    model(torch.randn(2, 5)).square().sum().backward()
    optimizer = factory(list(model.parameters()))
    optimizer.step()
    assert found.state.tensor_bytes == state_bytes(optimizer)


LOW_BIT = [d for d in (torch.int8, "int4") if d in STATE_DTYPES]


@pytest.mark.parametrize("state_dtype", LOW_BIT, ids=str)
def test_the_estimate_holds_for_low_bit_momentum(state_dtype):
    def factory(params):
        return SGDSaI(params, state_dtype=state_dtype)

    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 33), nn.Linear(33, 5))
    found = estimate(model, factory)
    model(torch.randn(4, 100)).square().sum().backward()
    optimizer = factory(model.parameters())
    optimizer.step()
    assert found.state.tensor_bytes == state_bytes(optimizer)
    assert found.state_bytes_per_parameter < 2


def test_the_model_is_not_changed():
    model = TinyTransformer()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    estimate(model, torch.optim.AdamW, dtype=torch.bfloat16, num_shards=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_another_dtype_changes_weights_gradients_and_state():
    model = nn.Linear(10, 10)
    found = estimate(model, SGDSaI, dtype=torch.bfloat16)
    assert found.weights.tensor_bytes == found.gradients.tensor_bytes == 220
    # Beside the momentum, each block has a scale and a seed of 4 bytes.
    assert found.state.tensor_bytes == 220 + 2 * 8
    assert found == estimate(nn.Linear(10, 10).bfloat16(), SGDSaI)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = estimate(model, torch.optim.AdamW)
    assert (found.num_params, found.weights.tensor_bytes) == (16, 64)


def test_gradient_release_keeps_the_largest_gradient_alone():
    found = estimate(TinyTransformer(), SGDSaI)
    largest = 3 * 16 * 16 * 4
    assert found.largest_gradient_bytes == largest
    grads = found.gradients.tensor_bytes
    assert found.total_bytes - found.release_bytes == grads - largest


def test_a_fused_optimizer_is_refused_in_one_sentence():
    with pytest.raises(OptimizerError, match="foreach and fused left to None"):
        estimate(nn.Linear(2, 2), lambda p: torch.optim.AdamW(p, fused=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gpt2", SGDSaI), TypeError, "model must be an nn.Module, got str"),
        ((nn.ReLU(), SGDSaI), ValueError, "model must have a parameter"),
        ((nn.Linear(1, 1), list), TypeError, "optimizer_factory must return"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        estimate(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_shards": 0}, ValueError, "num_shards must be >= 1, got 0"),
        ({"num_shards": 1.5}, TypeError, "num_shards must be an integer, got 1.5"),
        ({"dtype": torch.int8}, TypeError, "dtype must be a floating dtype"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        estimate(nn.Linear(1, 1), SGDSaI, **options)


@pytest.fixture
def first_of_four_ranks():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()
    forget_meshes()


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.mark.usefixtures("first_of_four_ranks")
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, torch.int8, "int4"])
@pytest.mark.parametrize("scaling", ["gsnr", "factored"])
def test_shards_are_those_of_the_first_rank_of_fsdp2(state_dtype, scaling):
    def factory(params):
        return SGDSaI(params, state_dtype=state_dtype, scaling=scaling)

    # The last matrix has 4096 entries or more as a whole only, and rows left over.
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 70), nn.Linear(70, 65))
    num_params = sum(p.numel() for p in model.parameters())
    found = estimate(model, factory, num_shards=4)
    mesh = dist.init_device_mesh("cpu", (4,))
    fully_shard(model, mesh=mesh)
    optimizer = factory(model.parameters())
    optimizer.assign_scales({})
    weights = [local(p) for p in model.parameters()]
    state = [local(t) for entry in optimizer.state.values() for t in entry.values()]
    assert found.weights.tensor_bytes == bytes_of(weights)
    assert found.state.tensor_bytes == bytes_of(state)
    assert found.num_params == num_params
