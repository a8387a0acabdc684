import itertools
import math

import layouts
import pytest
import torch
from layouts import LAYOUTS
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from saiopt import SGDSaI
from saiopt.low_bit import low_half, noise_bits, round_stochastically

FLOAT32, BF16 = torch.float32, torch.bfloat16
PAIR, SQUARE = (2,), (2, 2)
SHAPES = {
    "rows": ((101, 77), PAIR, [Shard(0)]),
    "fewer rows than ranks": ((1, 5000), PAIR, [Shard(0)]),
    "columns of whole groups": ((70, 128), PAIR, [Shard(1)]),
    "columns that cut groups": ((70, 96), PAIR, [Shard(1)]),
    "uneven columns": ((70, 101), PAIR, [Shard(1)]),
    "channels": ((64, 6, 4, 4), PAIR, [Shard(0)]),
    "input channels of whole groups": ((64, 8, 4, 4), PAIR, [Shard(1)]),
    "input channels that cut groups": ((64, 6, 4, 4), PAIR, [Shard(1)]),
    "three dimensions": ((5, 31, 33), PAIR, [Shard(0)]),
    "replicated": ((64, 80), PAIR, [Replicate()]),
    "copies of rows": ((101, 77), SQUARE, [Replicate(), Shard(0)]),
    "rows of rows": ((101, 77), SQUARE, [Shard(0), Shard(0)]),
    "rows and columns": ((71, 128), SQUARE, [Shard(0), Shard(1)]),
    "columns and rows": ((71, 128), SQUARE, [Shard(1), Shard(0)]),
}
CUT = {
    "columns that cut groups",
    "uneven columns",
    "input channels that cut groups",
}
DTYPES = list(itertools.product((FLOAT32, BF16), (FLOAT32, BF16, torch.int8, "int4")))


def trained(shape, dtype, state_dtype, *, rounds=None, mesh=None, placements=None):
    """The parameter and its state after three steps."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
    if mesh is not None:
        values = [distribute_tensor(v, mesh, placements) for v in values]
    param = nn.Parameter(values[0])
    optimizer = SGDSaI(
        [param], 1e-2, state_dtype=state_dtype, stochastic_rounding=rounds
    )
    for grad in values[1:]:
        param.grad = grad
        optimizer.step()
    return param.detach(), optimizer.state[param]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def are_equal(first, second):
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a[k], b[k]) for a, b in pairs for k in a)


def shards(name):
    """Whether each momentum is coded; it must be that of one process bit for bit."""
    shape, mesh_shape, placements = SHAPES[name]
    mesh = init_device_mesh("cpu", mesh_shape)
    coded = []
    for (dtype, state_dtype), rounds in itertools.product(DTYPES, (None, False)):
        given = {"rounds": rounds, "mesh": mesh, "placements": placements}
        param, state = trained(shape, dtype, state_dtype, **given)
        coded.append("momentum_scale" in state)
        held = state_dtype
        if not coded[-1] and state_dtype in (torch.int8, "int4"):
            held = FLOAT32
        expected, its_state = trained(shape, dtype, held, rounds=rounds)
        sharded = [t for t in state.values() if isinstance(t, DTensor)]
        assert all(t.placements == param.placements for t in sharded)
        found = {key: whole(value) for key, value in state.items()}
        found["param"] = whole(param)
        wanted = {**its_state, "param": expected}
        unequal = {
            key: torch.ne(value, found[key]).sum().item()
            for key, value in wanted.items()
            if not torch.equal(value, found[key])
        }
        assert not unequal, (dtype, state_dtype, rounds, unequal)
    return coded


@pytest.mark.parametrize("name", SHAPES)
def test_a_shard_is_updated_and_rounded_as_its_part_of_the_whole(workers, name):
    world = math.prod(SHAPES[name][1])
    by_rank = workers.run(world, shards, name)
    asked = [state in (torch.int8, "int4") for _, state in DTYPES for _ in range(2)]
    expected = [False] * len(asked) if name in CUT else asked
    assert by_rank == [expected] * world


class OddNet(layouts.Net):
    """Rows, columns and channels that neither ranks nor groups divide."""

    def __init__(self):
        super().__init__(67, 132)
        self.conv = nn.Conv2d(6, 21, 7)
        self.stack = nn.Parameter(torch.randn(5, 31, 33))


def train_odd_net(name, dtype, state_dtype):
    """Return whole parameters and states; no name means one process."""
    torch.manual_seed(0)
    model = OddNet().to(dtype)
    if name:
        model = LAYOUTS[name].spread(model)
    optimizer = SGDSaI(model.parameters(), 1e-2, state_dtype=state_dtype)
    for step in range(3):
        layouts.draw_grads(model, step)
        optimizer.step()
    return {
        key.removeprefix("module."): {
            "param": whole(param).detach().clone(),
            **{k: whole(v) for k, v in optimizer.state[param].items()},
        }
        for key, param in model.named_parameters()
    }


def odd_nets(name):
    return [train_odd_net(name, *dtypes) for dtypes in DTYPES]


@pytest.mark.parametrize(
    "name", ["DDP", "FSDP2", "FSDP2, empty shards", "HSDP", "TP", "FSDP2 + TP"]
)
def test_a_model_of_odd_shapes_rounds_like_one_process(workers, name):
    alone = {dtypes: train_odd_net(None, *dtypes) for dtypes in DTYPES}
    for found in workers.run(LAYOUTS[name].world, odd_nets, name):
        cut = set()
        for (dtype, state_dtype), model in zip(DTYPES, found, strict=True):
            for key, state in model.items():
                expected = alone[dtype, state_dtype][key]
                if "momentum_scale" in expected.keys() - state.keys():
                    cut.add(key)
                    expected = alone[dtype, FLOAT32][key]
                assert are_equal([expected], [state]), (dtype, state_dtype, key)
        # Its columns are parted within a group, so that it is not coded.
        assert cut == ({"down.weight"} if "TP" in name else set())


def equal_parts():
    """The first row of a rank's part where all entries are updated alike."""
    mesh = init_device_mesh("cpu", (2,))
    rows = []
    for dim in (0, 1, 2):
        values = torch.ones(6, 8, 10, dtype=BF16)
        param = nn.Parameter(distribute_tensor(values, mesh, [Shard(dim)]))
        optimizer = SGDSaI([param], 1e-3, weight_decay=0.0, scaling="none")
        param.grad = distribute_tensor(values, mesh, [Shard(dim)])
        optimizer.step()
        rows.append(param.detach().to_local()[0].flatten())
    return rows


def test_no_two_shards_share_their_noise(workers):
    for a, b in zip(*workers.run(2, equal_parts), strict=True):
        assert len(a.unique()) == 2
        # Nor does one begin where the other comes to.
        for shift in range(len(a) - 20):
            end = len(a) - shift
            assert not torch.equal(a[shift:], b[:end])
            assert not torch.equal(b[shift:], a[:end])


# Seeds


def blocks():
    """Equal shapes of different values, and zeros of different sizes."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(70, 67), (70, 67), (67, 70)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    values += [torch.zeros(10), torch.zeros(20)]
    return [nn.Parameter(v.to(BF16)) for v in values]


def step_on(params, optimizers, steps=3):
    """Give all blocks of a size the same gradients."""
    for step in range(steps):
        for param in params:
            generator = torch.Generator().manual_seed(step)
            grad = torch.randn(param.numel(), generator=generator)
            param.grad = grad.view_as(param).to(param.dtype)
        for optimizer in optimizers:
            optimizer.step()
    return [
        {"param": param.detach().clone(), **optimizer.state[param]}
        for optimizer in optimizers
        for group in optimizer.param_groups
        for param in group["params"]
    ]


@pytest.mark.parametrize("state_dtype", [None, torch.int8, "int4"])
def test_one_optimizer_per_parameter_rounds_like_one_for_all(state_dtype):
    params = blocks()
    together = step_on(params, [SGDSaI(params, state_dtype=state_dtype)])
    params = blocks()
    apart = [SGDSaI([p], state_dtype=state_dtype) for p in params]
    assert are_equal(step_on(params, apart), together)


def test_a_blocks_noise_does_not_hang_on_its_place():
    params = blocks()
    together = step_on(params, [SGDSaI(params, state_dtype="int4")])
    params = blocks()
    turned = step_on(params, [SGDSaI(params[::-1], state_dtype="int4")])
    assert are_equal(turned[::-1], together)


def test_no_two_blocks_share_their_noise():
    params = blocks()
    optimizers = [SGDSaI([p], state_dtype=torch.int8) for p in params]
    states = step_on(params, optimizers)
    seeds = [state["rounding_seed"].item() for state in states]
    assert len(set(seeds)) == len(seeds)
    # The gradients are the same, and so is the momentum but for its rounding.
    first, second = (state["momentum_buffer"] for state in states[:2])
    assert not torch.equal(first, second)


def test_equal_blocks_of_an_optimizer_have_noise_of_their_own():
    twins = [nn.Parameter(torch.zeros(70, 67)) for _ in range(3)]
    states = step_on(twins, [SGDSaI(twins, state_dtype="int4")])
    for a, b in itertools.combinations(states, 2):
        assert not torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_the_noise_is_the_runs():
    results = []
    for seed in (1, 2, 1, 2**32 + 1):
        params = blocks()
        torch.manual_seed(seed)
        results.append(step_on(params, [SGDSaI(params, state_dtype=torch.int8)]))
    first, other, again, far = results
    assert are_equal(again, first)
    assert not are_equal(other, first)
    assert not are_equal(far, first)


def test_seeds_of_the_first_release_go_on():
    param = nn.Parameter(torch.ones(50, dtype=BF16))
    optimizer = SGDSaI([param], 1e-3, momentum=0.0, weight_decay=0.0, scaling="none")
    group = optimizer.state_dict()["param_groups"][0]
    # What it wrote for its second parameter after four steps.
    seed = 0x9E3779B1 - 2**31 + 4
    entry = {
        "scale": torch.ones(()),
        "rounding_seed": torch.tensor(seed, dtype=torch.int32),
    }
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": [group]})
    param.grad = torch.ones_like(param)
    optimizer.step()
    held = optimizer.state[param]["rounding_seed"]
    assert held.item() == seed + 1
    expected = torch.empty_like(param)
    values = torch.ones(50) - torch.tensor(1e-3) * torch.ones(50)
    round_stochastically(expected, values, low_half(noise_bits(0, 50, held)))
    assert torch.equal(param.detach(), expected.detach())


def seeded_apart(name):
    """Replicas after steps of a program that seeds every rank apart."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(17 + rank)
    model = LAYOUTS[name].spread(layouts.Net(67, 128).to(BF16))
    options = {**layouts.OPTIONS, "state_dtype": torch.int8}
    if LAYOUTS[name].zero:
        optimizer = layouts.zero_redundancy(model.parameters(), options)
    else:
        optimizer = SGDSaI(model.parameters(), **options)
    layouts.train(model, optimizer, layouts.by_rank, 3)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", ["DDP", "ZeroRedundancyOptimizer"])
def test_replicas_round_alike_where_ranks_are_seeded_apart(workers, name):
    first, second = workers.run(2, seeded_apart, name)
    assert all(map(torch.equal, first, second))


def collectives(name, state_dtype):
    model = LAYOUTS[name].spread(layouts.make_wide_net(torch.float32))
    optimizer = SGDSaI(model.parameters(), state_dtype=state_dtype)
    sent = []
    for step in range(3):
        layouts.draw_grads(model, step)
        with layouts.Collectives() as counter:
            optimizer.step()
        sent.append(counter.count)
    return sent


@pytest.mark.parametrize(
    ("name", "state_dtype", "sent"),
    [
        ("DDP", torch.int8, [0, 0, 0]),
        ("FSDP2", None, [1, 0, 0]),
        ("FSDP2", torch.int8, [2, 0, 0]),
        ("FSDP1, original parameters", BF16, [2, 0, 0]),
        ("FSDP2 + TP", torch.int8, [4, 0, 0]),
    ],
)
def test_rounding_costs_one_collective_per_group_once(workers, name, state_dtype, sent):
    world = LAYOUTS[name].world
    assert workers.run(world, collectives, name, state_dtype) == [sent] * world
