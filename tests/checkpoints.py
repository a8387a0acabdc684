"""Saving a run on 2 ranks and continuing it on other numbers of ranks.

    python tests/checkpoints.py

Saved is after two steps, in the middle of what the finer rules measure, and after six.
The table shows the largest relative difference of a scale after loading, and of a
parameter four steps later, from the run that went on uninterrupted on 2 ranks.
"""

import itertools
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from layouts import (
    LAYOUTS,
    batches,
    full_params,
    make_net,
    make_optimizer,
    scale_difference,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from workers import Workers

from saiopt import get_scales


def step_on(model, optimizer, share, first, last):
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in list(batches(last))[first:]:
        ids, labels = share(batch, rank, world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        optimizer.step()


def spread(name, dtype, make=make_net, scaling="gsnr", **options):
    layout = LAYOUTS[name]
    model = layout.spread(make(dtype))
    optimizer, _ = make_optimizer(model, layout, scaling, **options)
    return model, optimizer


def whole_batch(batch, rank, world):
    """Every rank count sees the same gradients: shares of 8 do not split by 3."""
    del rank, world
    return batch


def save(name, folder, dtype, flags, steps=4, options=None):
    """Train, save, train on; return what an uninterrupted run has."""
    model, optimizer = spread(name, dtype, **(options or {}))
    step_on(model, optimizer, whole_batch, 0, steps)
    flags = StateDictOptions(**flags)
    weights, state = get_state_dict(model, optimizer, options=flags)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    scales = get_scales(optimizer, model)
    step_on(model, optimizer, whole_batch, steps, steps + 4)
    return full_params(model), scales, get_scales(optimizer, model)


def load(name, folder, dtype, flags, steps=4, options=None):
    """Load and train on."""
    model, optimizer = spread(name, dtype, **(options or {}))
    flags = StateDictOptions(**flags)
    weights, state = get_state_dict(model, optimizer, options=flags)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=held["model"],
        optim_state_dict=held["optimizer"],
        options=flags,
    )
    scales = get_scales(optimizer, model)
    step_on(model, optimizer, whole_batch, steps, steps + 4)
    return full_params(model), scales, get_scales(optimizer, model)


def main():
    workers = Workers()
    print(
        f"{'saved on 2':<12}{'steps':<8}{'loaded on':<12}{'scales':>10}{'params':>10}"
    )
    for scaling, steps in itertools.product(("gsnr", "factored", "orthogonal"), (2, 6)):
        with tempfile.TemporaryDirectory() as folder:
            options = {"scaling": scaling}
            args = ("FSDP2", folder, torch.float64, {}, steps, options)
            expected = workers.run(2, save, *args)[0]
            for world in (1, 2, 3, 4):
                params, scales, _ = workers.run(world, load, *args)[0]
                largest = max(
                    ((params[k] - v).abs().max() / v.abs().max()).item()
                    for k, v in expected[0].items()
                )
                drift = max(
                    scale_difference(scales[k], v) for k, v in expected[1].items()
                )
                print(
                    f"{scaling:<12}{steps:<8}{world:<12}{drift:>10.1e}{largest:>10.1e}",
                    flush=True,
                )
    workers.stop()


if __name__ == "__main__":
    main()
