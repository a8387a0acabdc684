"""`"orthogonal"` where ranks share the matrices: one of them orthogonalises each."""

import itertools
import math

import layouts
import pytest
import torch
import torch.distributed as dist
from layouts import LAYOUTS, OPTIONS
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from saiopt import SGDSaI
from saiopt.distributed.matrices import Box, Spread, owners

MATRICES = [(20, 12), (20, 12), (13, 7), (7, 13), (1, 9), (9, 1), (1, 1), (2, 5)]
CONVOLUTIONS = [(6, 4, 3, 2), (5, 1, 2, 2)]
STACKS = [(5, 4, 6), (2, 9, 3), (1, 3, 3)]
PLACEMENTS = {
    (2,): [[Shard(0)], [Shard(1)], [Replicate()]],
    (3,): [[Shard(0)], [Shard(1)]],
    (4,): [[Shard(0)]],
    (2, 2): [
        [Replicate(), Shard(0)],
        [Shard(0), Replicate()],
        [Shard(0), Shard(0)],
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Replicate(), Replicate()],
    ],
}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def values(shape, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


class Blocks:
    """Matrices of many shapes, each in every way of a mesh; no mesh means whole."""

    def __init__(self, mesh=None, placements=(None,), dtype=torch.float64, **options):
        self.mesh, self.dtype = mesh, dtype
        self.placements, params = [], []
        for shapes in (MATRICES + CONVOLUTIONS, STACKS):
            pairs = list(itertools.product(shapes, placements))
            self.placements += [placement for _, placement in pairs]
            params.append(
                [
                    nn.Parameter(self.lay(values(shape, i, dtype), placement))
                    for i, (shape, placement) in enumerate(pairs)
                ]
            )
        self.params = [*params[0], *params[1]]
        groups = [{"params": params[0]}, {"params": params[1], "stacked": True}]
        self.optimizer = SGDSaI(groups, **OPTIONS, scaling="orthogonal", **options)

    def lay(self, tensor, placement):
        if self.mesh is None:
            return tensor
        return distribute_tensor(tensor, self.mesh, placement, src_data_rank=None)

    def step(self, count):
        for i, param in enumerate(self.params):
            grad = values(param.shape, 1000 + 100 * count + i, self.dtype)
            param.grad = self.lay(grad, self.placements[i])
        with layouts.Collectives() as sent:
            self.optimizer.step()
        return sent

    def whole(self):
        """Parameters and momenta, and the rounding seeds if there are any."""
        found = [whole(p.detach()) for p in self.params]
        for entry in self.optimizer.state.values():
            found += [whole(value) for value in entry.values()]
        return found


def trained(mesh_shape, dtype=torch.float64, steps=3, **options):
    """What some steps make, what each sent, and the work of this rank."""
    mesh = init_device_mesh("cpu", mesh_shape)
    blocks = Blocks(mesh, PLACEMENTS[mesh_shape], dtype, **options)
    with layouts.counted_directions() as work:
        sent = [blocks.step(i) for i in range(steps)]
    numbers = [(each.count, each.bytes) for each in sent]
    return blocks.whole(), numbers, sum(w for w in work if w > 1)


def alone(mesh_shape, dtype=torch.float64, **options):
    """The same without ranks: every shape as often as there are placements."""
    blocks = Blocks(None, [None] * len(PLACEMENTS[mesh_shape]), dtype, **options)
    with layouts.counted_directions() as work:
        for i in range(3):
            blocks.step(i)
    return blocks.whole(), sum(w for w in work if w > 1)


@pytest.mark.parametrize("mesh_shape", PLACEMENTS, ids=str)
def test_every_shape_in_every_place_moves_as_in_one_process(workers, mesh_shape):
    expected, work = alone(mesh_shape)
    found = workers.run(math.prod(mesh_shape), trained, mesh_shape)
    for tensors, sent, _ in found:
        for tensor, exact in zip(tensors, expected, strict=True):
            torch.testing.assert_close(tensor, exact, rtol=1e-10, atol=1e-12)
        # The moments of the first step, for each group; then one pair for all.
        assert [count for count, _ in sent] == [2 + len(mesh_shape), 2, 2]
    assert sum(own for *_, own in found) == work


def bits(mesh_shape, dtype):
    tensors, *_ = trained(mesh_shape, dtype)
    return [t.double().numpy().tobytes() for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_stay_equal_bit_for_bit(workers, dtype):
    found = workers.run(4, bits, (2, 2), dtype)
    assert all(len(set(of_ranks)) == 1 for of_ranks in zip(*found, strict=True))


def by_buckets(caps):
    return [trained((3,), bucket_cap_mb=cap, steps=1)[:2] for cap in caps]


def test_buckets_bound_what_is_sent_at_once(workers):
    # One parameter each; some; all.
    small, middle, large = workers.run(3, by_buckets, (1e-6, 0.003, 25))[0]
    for tensors, _ in (small, middle):
        for tensor, exact in zip(tensors, large[0], strict=True):
            torch.testing.assert_close(tensor, exact, rtol=1e-12, atol=1e-14)
    counts, sent = zip(*(each[1][0] for each in (small, middle, large)), strict=True)
    assert counts[0] > counts[1] > counts[2] == 3
    assert sent[0] == sent[1] == sent[2]


def bytes_sent(mesh_shape, placement, shape):
    """Bytes that this rank sends in a second step, of float32 and of bfloat16."""
    mesh, found = init_device_mesh("cpu", mesh_shape), []
    for dtype in (torch.float32, torch.bfloat16):
        param = nn.Parameter(
            distribute_tensor(values(shape, 0, dtype), mesh, placement)
        )
        optimizer = SGDSaI([param], scaling="orthogonal")
        for step in (1, 2):
            grad = values(shape, step, dtype)
            param.grad = distribute_tensor(grad, mesh, placement)
            with layouts.Collectives() as sent:
                optimizer.step()
        found.append(sent.bytes)
    return found


@pytest.mark.parametrize(
    ("mesh_shape", "placement", "parts", "copies"),
    [
        ((2,), [Shard(0)], 2, 1),
        ((2, 2), [Replicate(), Shard(0)], 2, 2),
        ((2, 2), [Shard(1), Shard(0)], 4, 1),
        ((2,), [Replicate()], 1, 2),
    ],
)
def test_bytes_follow_their_formula(workers, mesh_shape, placement, parts, copies):
    world, shape = math.prod(mesh_shape), (8, 12)
    found = workers.run(world, bytes_sent, mesh_shape, placement, shape)
    there, back = 1 - 1 / parts, copies - 1 / parts
    for sent, width in zip(zip(*found, strict=True), (4, 2), strict=True):
        assert sum(sent) == math.prod(shape) * (4 * there + width * back)


# Who does what


def spread(shape, boxes):
    return Spread(None, torch.device("cpu"), shape, tuple(boxes))


def rows(shape, counts):
    """What ranks have that have some rows each."""
    first = [0, *itertools.accumulate(counts)]
    rest = shape[2:]
    return spread(
        shape,
        [
            Box((0, at, *[0] * len(rest)), (1, count, *rest))
            for at, count in zip(first, counts, strict=False)
        ],
    )


def test_the_work_is_dealt_out_evenly():
    shapes = [(1, 64, 64)] * 9 + [(1, 64, 128)] * 5 + [(1, 8, 64)] * 6
    spreads = [rows(shape, [shape[1] // 4] * 4) for shape in shapes]
    loads = [0] * 4
    for each, found in zip(spreads, owners(spreads), strict=True):
        loads[found[0]] += each.cost
    assert max(loads) <= 1.1 * sum(loads) / 4
    assert owners(spreads) == owners(spreads)


def test_an_owner_has_a_part_or_the_whole_if_any_has_it():
    few, whole_on_last = rows((1, 2, 9), [1, 1, 0, 0]), rows((1, 2, 9), [0, 0, 0, 2])
    assert owners([few] * 4) == [(0,), (1,), (0,), (1,)]
    assert owners([whole_on_last] * 3) == [(3,)] * 3
    # What has a choice goes to those that are left.
    everywhere = rows((1, 8, 9), [2, 2, 2, 2])
    assert (3,) not in owners([everywhere] * 3 + [whole_on_last] * 3)[:3]


def test_stacks_that_are_whole_somewhere_stay_there():
    boxes = [Box((2 * r, 0, 0), (2, 4, 4)) for r in range(3)]
    assert owners([spread((6, 4, 4), boxes)]) == [(0, 0, 1, 1, 2, 2)]


# Gradients that lack


def one_rank_without_gradient():
    """The parameter before and after a step to which one rank gives no gradient."""
    mesh = init_device_mesh("cpu", (2,))
    start = values((6, 8), 0, torch.float64)
    params = [nn.Parameter(distribute_tensor(start, mesh, [Shard(0)])) for _ in "ab"]
    optimizer = SGDSaI(params, **OPTIONS, scaling="orthogonal")
    history = []
    for step in range(3):
        for param in params:
            grad = values((6, 8), 10 + step, torch.float64)
            param.grad = distribute_tensor(grad, mesh, [Shard(0)])
        if step == 1 and dist.get_rank() == 1:
            params[0].grad = None
        if step == 2:
            params[0].grad = params[1].grad = None
        with layouts.Collectives() as sent:
            optimizer.step()
        history.append(whole(params[0].detach()).clone())
    return history, sent.count


def test_a_part_without_a_gradient_stays_and_the_others_move_as_if_it_were_zero(
    workers,
):
    param = nn.Parameter(values((6, 8), 0, torch.float64))
    optimizer = SGDSaI([param], **OPTIONS, scaling="orthogonal")
    expected = []
    for step in range(2):
        param.grad = values((6, 8), 10 + step, torch.float64)
        if step == 1:
            param.grad[3:] = 0
        optimizer.step()
        expected.append(param.detach().clone())
    expected[1][3:] = expected[0][3:]
    for history, sent in workers.run(2, one_rank_without_gradient):
        torch.testing.assert_close(history[0], expected[0])
        torch.testing.assert_close(history[1], expected[1])
        # Without any gradient nothing happens.
        assert torch.equal(history[2], history[1])
        assert sent == 0


def late_block():
    model = layouts.fsdp2(layouts.make_net())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    optimizer = SGDSaI(matrices, **OPTIONS, scaling="orthogonal")
    counts = []
    for step, (ids, labels) in enumerate(layouts.batches(5)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        if step < 2:
            model.up.weight.grad = torch.zeros_like(model.up.weight)
        elif step == 2:
            model.up.weight.grad = None
        with layouts.Collectives() as sent:
            optimizer.step()
        counts.append(sent.count)
    return counts, layouts.full_params(model)


def test_a_block_whose_gradients_come_late_joins_then(workers):
    model = layouts.make_net()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    optimizer = SGDSaI(matrices, **OPTIONS, scaling="orthogonal")
    for step, (ids, labels) in enumerate(layouts.batches(5)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        if step < 2:
            model.up.weight.grad.zero_()
        elif step == 2:
            model.up.weight.grad = None
        optimizer.step()
    for counts, found in workers.run(2, late_block):
        assert counts == [3, 3, 3, 3, 2]
        for key, value in layouts.full_params(model).items():
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)


# Groups of ranks


def mesh_of_some_ranks():
    """Train on a mesh of two dimensions that is not the whole world."""
    mesh = DeviceMesh("cpu", [[0, 1], [2, 3]])
    if dist.get_rank() == 4:
        return None
    found = []
    for placement in ([Shard(0), Shard(1)], [Replicate(), Shard(0)]):
        start = values((6, 8), 0, torch.float64)
        param = nn.Parameter(distribute_tensor(start, mesh, placement))
        # As by a loop that makes one optimizer after the other.
        for step in range(2):
            optimizer = SGDSaI([param], **OPTIONS, scaling="orthogonal")
            grad = values((6, 8), 10 + step, torch.float64)
            param.grad = distribute_tensor(grad, mesh, placement)
            optimizer.step()
        found.append(whole(param.detach()))
    return found


def test_a_mesh_that_is_not_the_whole_world_has_a_group_of_its_own(workers):
    param = nn.Parameter(values((6, 8), 0, torch.float64))
    for step in range(2):
        optimizer = SGDSaI([param], **OPTIONS, scaling="orthogonal")
        param.grad = values((6, 8), 10 + step, torch.float64)
        optimizer.step()
    *members, outside = workers.run(5, mesh_of_some_ranks)
    assert outside is None
    for found in itertools.chain(*members):
        torch.testing.assert_close(found, param.detach(), rtol=1e-10, atol=1e-12)


# DDP


def replicated_or_not():
    """Parameters under DDP, with the work shared and not, and the work of this rank."""
    found = []
    for replicated in (True, False):
        layout = LAYOUTS["DDP"]._replace(replicated=replicated)
        model = layouts.ddp(layouts.make_net(torch.float32))
        optimizer, _ = layouts.make_optimizer(model, layout, "orthogonal")
        with layouts.counted_directions() as work:
            layouts.train(model, optimizer, layouts.by_rank, 8)
        found.append((layouts.full_params(model), sum(work)))
    return found


def test_replicas_share_the_work_where_they_are_said_to_be_such(workers):
    by_rank = workers.run(2, replicated_or_not)
    (_, whole_work), loads = by_rank[0][1], [shared[1] for shared, _ in by_rank]
    assert max(loads) < 0.65 * whole_work
    for (params, _), (expected, _) in by_rank:
        assert all(torch.equal(params[key], by_rank[0][0][0][key]) for key in params)
        for key, value in expected.items():
            torch.testing.assert_close(params[key], value, rtol=1e-6, atol=1e-7)


def other_params(how):
    torch.manual_seed(dist.get_rank() if how == "values" else 0)
    params = [nn.Parameter(torch.randn(4, 5)) for _ in range(3)]
    if how == "partition":
        params = params[dist.get_rank() : dist.get_rank() + 1]
    before = [p.detach().clone() for p in params]
    optimizer = SGDSaI(params, scaling="orthogonal", replicated=True)
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="replicated must be False where ranks"):
        optimizer.step()
    return all(map(torch.equal, params, before))


@pytest.mark.parametrize("how", ["values", "partition"])
def test_parameters_that_are_no_replicas_are_refused(workers, how):
    assert workers.run(2, other_params, how) == [True, True]


def test_one_process_has_no_replicas():
    params = [nn.Parameter(torch.ones(3, 4)) for _ in "ab"]
    for param, replicated in zip(params, (True, False), strict=True):
        optimizer = SGDSaI([param], scaling="orthogonal", replicated=replicated)
        param.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    assert torch.equal(*params)


# Compiled


def compiled_or_not():
    """Parameters of both, and how many frames were compiled after some steps."""
    results = []
    for compiles in (False, True):
        torch._dynamo.reset()
        model = layouts.fsdp2(layouts.make_net())
        optimizer, _ = layouts.make_optimizer(model, LAYOUTS["FSDP2"], "orthogonal")
        frames = CompileCounter()
        step = optimizer.step
        if compiles:
            step = torch.compile(step, backend=frames)
        counts = []
        for ids, labels in layouts.batches(9):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids), labels).backward()
            step()
            counts.append(frames.frame_count)
        results.append(layouts.full_params(model))
    return *results, counts


def test_a_compiled_step_is_the_eager_one(workers):
    for expected, found, counts in workers.run(2, compiled_or_not):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)
        # Nothing while vectors measure; then once, by what was the last to change.
        assert counts[-1] == counts[-3]
        assert counts[-1] <= 2


# Roundings


@pytest.mark.parametrize("state_dtype", [torch.int8, "int4"])
@pytest.mark.parametrize("name", ["FSDP2", "FSDP2, uneven shards", "HSDP"])
def test_momentum_in_few_bits_rounds_like_one_process(workers, name, state_dtype):
    args = (torch.bfloat16, state_dtype, 4, layouts.make_wide_net, "orthogonal")
    expected = layouts.run_rounded(None, *args)
    for found in workers.run(LAYOUTS[name].world, layouts.run_rounded, name, *args):
        assert all(torch.equal(found[key], value) for key, value in expected.items())
