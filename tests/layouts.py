"""Every layout beside one process: scales, trajectory, and what it sends.

    python tests/layouts.py

Each layout trains the same float64 model on the same global batches, under `"gsnr"`,
under `"factored"`, measured over five gradients, and with `"orthogonal"` matrices whose
rest is `"factored"`. The table shows the largest relative difference of a scale from
one process, the largest difference of a parameter after 20 steps relative to the
parameter's largest entry, the collectives that the optimizer itself ran in a step that
calibrates and in a later one, the bytes that all ranks together gave to collectives in
a later one, and which share of the orthogonalisations of a step the busiest rank did,
by their work. Then it gives bfloat16 weights and int8 momentum the same gradients bit
for bit, and counts the entries that are rounded otherwise than in one process.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workers import Workers

from saiopt import SGDSaI, get_scales
from saiopt.scaling import RULES, Scales

VOCAB, BATCH = 13, 8
CPU = torch.device("cpu")
OPTIONS = {"lr": 2e-3, "momentum": 0.9, "weight_decay": 0.1}
# Gradients that each rule measures.
MEASURED = {"gsnr": 1, "gsnr_max": 1, "factored": 5, "orthogonal": 5}


class Net(nn.Module):
    """Rows that no number of ranks divides, and fewer rows than ranks."""

    def __init__(self, width=10, hidden=20):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, 3)

    def forward(self, ids):
        hidden = self.tokens(ids)
        hidden = hidden + self.down(torch.tanh(self.up(hidden)))
        return self.head(self.norm(hidden) * self.gain)


def make_net(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def make_wide_net(dtype=torch.bfloat16):
    """Matrices that are large enough for codes, with rows that groups do not divide."""
    torch.manual_seed(0)
    return Net(67, 128).to(dtype)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(VOCAB, (BATCH,), generator=generator)
        yield ids, torch.randint(3, (BATCH,), generator=generator)


class Collectives(TorchDispatchMode):
    """Counts the collectives that run inside it, and the bytes that they are given."""

    def __init__(self):
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(t is not torch.Tensor and issubclass(t, DTensor) for t in types):
            return NotImplemented
        waits = function is torch.ops._c10d_functional.wait_tensor.default
        if function.namespace in {"c10d", "_c10d_functional"} and not waits:
            self.count += 1
            # What is given comes after what is received, where the two are not one.
            tensors = tree_leaves(args[1]) + tree_leaves(args[0])
            sent = next(t for t in tensors if isinstance(t, torch.Tensor))
            self.bytes += sent.nbytes
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_directions():
    """Yield a list of the work of each orthogonalisation in here."""
    rule, work = RULES["orthogonal"], []

    def direction(stack):
        matrices, rows, cols = stack.shape
        work.extend([rows * cols * min(rows, cols)] * matrices)
        return rule.direction(stack)

    RULES["orthogonal"] = dataclasses.replace(rule, direction=direction)
    try:
        yield work
    finally:
        RULES["orthogonal"] = rule


def by_rank(batch, rank, world):
    size = BATCH // world
    return [part[rank * size : (rank + 1) * size] for part in batch]


def by_pair(batch, rank, world):
    return by_rank(batch, rank // 2, world // 2)


def the_same(batch, rank, world):
    del rank, world
    return batch


def ddp(net):
    return DistributedDataParallel(net)


def fsdp1(net, **options):
    return FullyShardedDataParallel(net, use_orig_params=True, device_id=CPU, **options)


def fsdp1_mesh(net):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return fsdp1(net, device_mesh=mesh)


def fsdp1_hybrid(net):
    return fsdp1(
        net,
        sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        device_mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard")),
    )


def fsdp2(net, **options):
    for module in (net.up, net.down):
        fully_shard(module, **options)
    return fully_shard(net, **options)


def fsdp2_offload(net):
    return fsdp2(net, offload_policy=CPUOffloadPolicy(pin_memory=False))


def fsdp2_mixed(net):
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    return fsdp2(net.float(), mp_policy=policy)


def hsdp(net):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
    return fsdp2(net, mesh=mesh)


def tensor_parallel(net, mesh=None):
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(net, mesh, plan)


def fsdp2_tensor_parallel(net):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    return fully_shard(tensor_parallel(net, mesh["model"]), mesh=mesh["data"])


class Layout(NamedTuple):
    """A way to spread the model over ranks, and the batch over them."""

    world: int
    spread: Callable
    share: Callable = by_rank
    zero: bool = False
    tolerance: float = 1e-6
    replicated: bool = False
    # Of the weights and of the momentum where roundings are compared.
    dtype: torch.dtype = torch.bfloat16
    state_dtype: torch.dtype = torch.int8


LAYOUTS = {
    "DDP": Layout(2, ddp),
    "DDP, replicated": Layout(2, ddp, replicated=True),
    "ZeroRedundancyOptimizer": Layout(2, ddp, zero=True),
    # Its slices cannot be coded.
    "FSDP1, original parameters": Layout(2, fsdp1, state_dtype=torch.bfloat16),
    "FSDP1, device mesh": Layout(2, fsdp1_mesh, state_dtype=torch.bfloat16),
    "FSDP1, hybrid": Layout(4, fsdp1_hybrid, state_dtype=torch.bfloat16),
    "FSDP2": Layout(2, fsdp2),
    # Shares of 8 examples do not split by 3.
    "FSDP2, uneven shards": Layout(3, fsdp2, the_same),
    "FSDP2, empty shards": Layout(4, fsdp2),
    "FSDP2, CPU offload": Layout(2, fsdp2_offload),
    # The model computes in bfloat16: its gradients themselves are that coarse.
    "FSDP2, mixed precision": Layout(
        2, fsdp2_mixed, tolerance=5e-2, dtype=torch.float32
    ),
    "HSDP": Layout(4, hsdp),
    "TP": Layout(2, tensor_parallel, the_same),
    "FSDP2 + TP": Layout(4, fsdp2_tensor_parallel, by_pair),
}


def train(model, optimizer, share, steps=20):
    """Return after `steps` steps on this rank's share of each global batch."""
    rank, world = (
        (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    )
    for batch in batches(steps):
        ids, labels = share(batch, rank, world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        optimizer.step()


def full_params(model):
    """Return whole parameters by their names in the bare model."""
    summon = contextlib.nullcontext()
    if isinstance(model, FullyShardedDataParallel):
        summon = FullyShardedDataParallel.summon_full_params(model)
    with summon, torch.no_grad():
        return {
            name.removeprefix("module.").removeprefix("_fsdp_wrapped_module."): (
                p.full_tensor() if isinstance(p, DTensor) else p
            ).clone()
            for name, p in model.named_parameters()
        }


def zero_redundancy(groups, options):
    # Importing it warns, which the tests would take for an error.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, SGDSaI, **options)


def groups_of(model, scaling):
    """Return param groups in which vectors are not `"orthogonal"`."""
    params = list(model.parameters())
    if scaling != "orthogonal":
        return [{"params": params}]
    # The shapes of a module are those that its optimizer sees, but under FSDP1.
    return [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() < 2], "scaling": "factored"},
    ]


def make_optimizer(model, layout, scaling, **options):
    """Return what the loop steps, and the optimizer in it."""
    options = {**OPTIONS, "scaling": scaling, **options}
    if MEASURED.get(scaling, 1) > 1:
        options.setdefault("calibration_steps", MEASURED[scaling])
    groups = groups_of(model, scaling)
    if layout.zero:
        outer = zero_redundancy(groups, options)
        return outer, outer.optim
    optimizer = SGDSaI(groups, **options, replicated=layout.replicated)
    return optimizer, optimizer


def run_layout(name, scaling, steps):
    """Return this rank's parameters, scales, collectives and work under a layout."""
    layout = LAYOUTS[name]
    model = layout.spread(make_net())
    outer, optimizer = make_optimizer(model, layout, scaling)
    counters = []
    optimizer.register_step_pre_hook(
        lambda *_: counters.append(Collectives().__enter__())
    )
    optimizer.register_step_post_hook(
        lambda *_: counters[-1].__exit__(None, None, None)
    )
    with counted_directions() as work:
        train(model, outer, layout.share, steps)
    sent = [(counter.count, counter.bytes) for counter in counters]
    return full_params(model), get_scales(optimizer, model), sent, sum(work)


def run_alone(scaling, steps):
    """Return parameters and scales of one process, and the work of its directions."""
    model = make_net()
    optimizer, _ = make_optimizer(model, Layout(1, None), scaling)
    with counted_directions() as work:
        train(model, optimizer, the_same, steps)
    return full_params(model), get_scales(optimizer, model), sum(work)


def draw_grads(model, step):
    """Give every parameter its part of the same whole gradient under all layouts."""
    generator = torch.Generator().manual_seed(step)
    if dist.is_initialized():
        # As averaging real gradients does, it lets no rank step before all are there.
        dist.barrier()
    sliced = isinstance(model, FullyShardedDataParallel)
    summon = contextlib.nullcontext()
    if sliced:
        ids = torch.arange(VOCAB)
        model(ids).sum().backward()
        summon = FullyShardedDataParallel.summon_full_params(model, with_grads=True)
    with summon, torch.no_grad():
        for param in model.parameters():
            whole = torch.randn(param.shape, generator=generator).to(param.dtype)
            if sliced:
                param.grad.copy_(whole)
            elif isinstance(param, DTensor):
                mesh, placements = param.device_mesh, param.placements
                param.grad = distribute_tensor(
                    whole, mesh, placements, src_data_rank=None
                )
            else:
                param.grad = whole


def run_rounded(name, dtype, state_dtype, steps=4, make=make_wide_net, scaling="gsnr"):
    """Return parameters after steps with drawn gradients; no name means one process."""
    layout = LAYOUTS.get(name, Layout(1, lambda net: net))
    model = layout.spread(make(dtype))
    if dist.is_initialized():
        # As many programs do, so that ranks draw apart.
        torch.manual_seed(dist.get_rank())
    optimizer, _ = make_optimizer(model, layout, scaling, state_dtype=state_dtype)
    for step in range(steps):
        draw_grads(model, step)
        optimizer.step()
    return full_params(model)


def count_rounded_otherwise(workers, name):
    """Return how many entries differ from one process, on any rank."""
    layout = LAYOUTS[name]
    expected = run_rounded(None, layout.dtype, layout.state_dtype)
    return sum(
        (found[key] != value).sum().item()
        for found in workers.run(
            layout.world, run_rounded, name, layout.dtype, layout.state_dtype
        )
        for key, value in expected.items()
    )


class Comparison(NamedTuple):
    """How a layout differs from one process."""

    scales: float
    params: float
    first_collectives: int
    later_collectives: int
    later_bytes: int
    busiest: float


def scale_difference(scale, expected):
    """Return the largest relative difference of a number, or of rows and columns."""
    if not isinstance(expected, Scales):
        return abs(scale - expected) / expected
    pairs = zip(vars(scale).values(), vars(expected).values(), strict=True)
    return max(((a - b).abs() / b).max().item() for a, b in pairs if b is not None)


def compare(workers, name, scaling="gsnr", steps=20):
    """Return the largest differences over all ranks."""
    params, scales, whole_work = run_alone(scaling, steps)
    found = workers.run(LAYOUTS[name].world, run_layout, name, scaling, steps)
    measured = MEASURED[scaling]
    return Comparison(
        max(
            scale_difference(scale, scales[key])
            for _, own, *_ in found
            for key, scale in own.items()
        ),
        max(
            ((own[key] - param).abs().max() / param.abs().max()).item()
            for own, *_ in found
            for key, param in params.items()
        ),
        max(count for *_, sent, _ in found for count, _ in sent[:measured]),
        max(count for *_, sent, _ in found for count, _ in sent[measured:]),
        sum(sent[-1][1] for *_, sent, _ in found),
        max(work for *_, work in found) / max(whole_work, 1),
    )


def main():
    workers = Workers()
    for scaling in ("gsnr", "factored", "orthogonal"):
        columns = ("ranks", "scales", "params", "first", "later", "bytes", "busiest")
        head = "".join(f"{column:>9}" for column in columns)
        print(f"{scaling:<28}{head}", flush=True)
        for name, layout in LAYOUTS.items():
            if "FSDP1" in name and scaling != "gsnr":
                continue
            found = compare(workers, name, scaling)
            scales, params, first, later, sent, busiest = found
            numbers = (
                f"{layout.world:>9}{scales:>9.0e}{params:>9.0e}{first:>9}{later:>9}"
            )
            print(f"{name:<28}{numbers}{sent:>9}{busiest:>9.2f}", flush=True)
    print(f"{'roundings':<28}{'ranks':>9}{'differ':>9}")
    for name, layout in LAYOUTS.items():
        differ = count_rounded_otherwise(workers, name)
        print(f"{name:<28}{layout.world:>9}{differ:>9}", flush=True)
    workers.stop()


if __name__ == "__main__":
    main()
