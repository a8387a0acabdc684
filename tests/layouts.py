"""Every layout beside one process: scales, trajectory, and what it sends.

    python tests/layouts.py

Each layout trains the same float64 model on the same global batches. The table shows
the largest relative difference of a scale from one process, the largest difference of
a parameter after 20 steps relative to the parameter's largest entry, and the
collectives that the optimizer itself ran in its first step and in all later ones.
Then it gives bfloat16 weights and int8 momentum the same gradients bit for bit, and
counts the entries that are rounded otherwise than in one process.
"""

import contextlib
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
from workers import Workers

from saiopt import SGDSaI, get_scales

VOCAB, BATCH = 13, 8
CPU = torch.device("cpu")
OPTIONS = {"lr": 2e-3, "momentum": 0.9, "weight_decay": 0.1}


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
    """Counts the collectives that run inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(t is not torch.Tensor and issubclass(t, DTensor) for t in types):
            return NotImplemented
        waits = function is torch.ops._c10d_functional.wait_tensor.default
        self.count += function.namespace in {"c10d", "_c10d_functional"} and not waits
        return function(*args, **(kwargs or {}))


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
    # Of the weights and of the momentum where roundings are compared.
    dtype: torch.dtype = torch.bfloat16
    state_dtype: torch.dtype = torch.int8


LAYOUTS = {
    "DDP": Layout(2, ddp),
    "ZeroRedundancyOptimizer": Layout(2, ddp, zero=True),
    # Its slices cannot be coded.
    "FSDP1, original parameters": Layout(2, fsdp1, state_dtype=torch.bfloat16),
    "FSDP1, device mesh": Layout(2, fsdp1_mesh, state_dtype=torch.bfloat16),
    "FSDP1, hybrid": Layout(4, fsdp1_hybrid, state_dtype=torch.bfloat16),
    "FSDP2": Layout(2, fsdp2),
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


def zero_redundancy(model, options):
    # Importing it warns, which the tests would take for an error.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(model.parameters(), SGDSaI, **options)


def run_layout(name, scaling, steps):
    """Return this rank's parameters, scales and collectives under a layout."""
    layout = LAYOUTS[name]
    model = layout.spread(make_net())
    options = {**OPTIONS, "scaling": scaling}
    if layout.zero:
        outer = zero_redundancy(model, options)
        optimizer = outer.optim
    else:
        outer = optimizer = SGDSaI(model.parameters(), **options)
    counters = []
    optimizer.register_step_pre_hook(
        lambda *_: counters.append(Collectives().__enter__())
    )
    optimizer.register_step_post_hook(
        lambda *_: counters[-1].__exit__(None, None, None)
    )
    train(model, outer, layout.share, steps)
    sent = [counter.count for counter in counters]
    return full_params(model), get_scales(optimizer, model), sent


def run_alone(scaling, steps):
    """Return parameters and scales of one process."""
    model = make_net()
    optimizer = SGDSaI(model.parameters(), **OPTIONS, scaling=scaling)
    train(model, optimizer, the_same, steps)
    return full_params(model), get_scales(optimizer, model)


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


def run_rounded(name, dtype, state_dtype, steps=4, make=make_wide_net):
    """Return parameters after steps with drawn gradients; no name means one process."""
    layout = LAYOUTS.get(name, Layout(1, lambda net: net))
    model = layout.spread(make(dtype))
    if dist.is_initialized():
        # As many programs do, so that ranks draw apart.
        torch.manual_seed(dist.get_rank())
    options = {**OPTIONS, "state_dtype": state_dtype}
    if layout.zero:
        optimizer = zero_redundancy(model, options)
    else:
        optimizer = SGDSaI(model.parameters(), **options)
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


def compare(workers, name, scaling="gsnr", steps=20):
    """Return the largest differences over all ranks."""
    params, scales = run_alone(scaling, steps)
    scale_difference = param_difference = 0.0
    first = later = 0
    for own_params, own_scales, sent in workers.run(
        LAYOUTS[name].world, run_layout, name, scaling, steps
    ):
        for key, scale in own_scales.items():
            difference = abs(scale - scales[key]) / scales[key]
            scale_difference = max(scale_difference, difference)
        for key, param in params.items():
            difference = (own_params[key] - param).abs().max() / param.abs().max()
            param_difference = max(param_difference, difference.item())
        first, later = max(first, sent[0]), max(later, sum(sent[1:]))
    return Comparison(scale_difference, param_difference, first, later)


def main():
    workers = Workers()
    print(
        f"{'layout':<28}{'ranks':>6}{'scales':>10}{'params':>10}{'first':>7}{'later':>7}"
        f"{'rounded':>9}"
    )
    for name, layout in LAYOUTS.items():
        scales, params, first, later = compare(workers, name)
        numbers = f"{layout.world:>6}{scales:>10.1e}{params:>10.1e}{first:>7}{later:>7}"
        numbers += f"{count_rounded_otherwise(workers, name):>9}"
        print(f"{name:<28}{numbers}", flush=True)
    workers.stop()


if __name__ == "__main__":
    main()
