"""Time a step of `"orthogonal"` on two processes, with the work shared and not.

    python tests/shared_step.py [--layers 4] [--width 384] [--rounds 7]

The hidden matrices of a GPT-2, float32, one thread for each process. Whole on both, as
under DDP, each process orthogonalises all of them or half; in shards, as under FSDP2,
half. Every round visits all cases in a new random order; the time of a round is that of
the slower process, from a barrier to its end.
"""

import argparse
import random
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from workers import Workers

from saiopt import SGDSaI

CASES = ("whole, not shared", "whole, shared", "shards, shared")


def make_step(case, shapes):
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = []
    for shape in shapes:
        pair = (torch.randn(shape) * 0.02, torch.randn(shape) * 1e-3)
        if case == "shards, shared":
            pair = (distribute_tensor(t, mesh, [Shard(0)]) for t in pair)
        weight, grad = pair
        params.append(nn.Parameter(weight))
        params[-1].grad = grad
    shares = case == "whole, shared"
    return SGDSaI(params, 1e-6, scaling="orthogonal", replicated=shares).step


def time_steps(shapes, rounds):
    """Return the seconds of each round by case, of this rank."""
    steps = {case: make_step(case, shapes) for case in CASES}
    order, seconds = list(CASES), {case: [] for case in CASES}
    random.seed(0)
    # The first two steps of each calibrate and plan.
    for count in range(rounds + 2):
        random.shuffle(order)
        for case in order:
            dist.barrier()
            begin = time.perf_counter()
            steps[case]()
            if count >= 2:
                seconds[case].append(time.perf_counter() - begin)
    return seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    n = options.width
    shapes = [(n, 3 * n), (n, n), (n, 4 * n), (4 * n, n)] * options.layers
    workers = Workers()
    by_rank = workers.run(2, time_steps, shapes, options.rounds)
    workers.stop()
    base = None
    print(f"{'case':<20}{'ms':>9}{'quartiles':>20}{'ratio':>8}")
    for case in CASES:
        slower = [max(pair) for pair in zip(*(r[case] for r in by_rank), strict=True)]
        base = base or slower
        lower, middle, upper = (1e3 * q for q in statistics.quantiles(slower, n=4))
        ratios = [own / other for own, other in zip(slower, base, strict=True)]
        between = f"{lower:.0f} … {upper:.0f}"
        ratio = statistics.median(ratios)
        print(f"{case:<20}{middle:>9.0f}{between:>20}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
