"""What ranks do in the tests of the lab."""

import contextlib
import functools
import unittest.mock
import weakref

import pytest
import torch
import torch.distributed as dist
from masked import MaskedTask
from torch.distributed.tensor import DTensor

from saiopt import SGDSaI
from saiopt.lab.comparison.compare import prepare
from saiopt.lab.optimizers import build_optimizer, set_mode
from saiopt.lab.recipe import override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.training import checkpoint
from saiopt.lab.training.accumulation import accumulate
from saiopt.lab.training.outcome import carry_out
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run import Run
from saiopt.lab.training.shards import gathered, whole

SETTINGS = {
    "task.hidden_size": "16",
    "task.num_layers": "2",
    "task.num_heads": "2",
    "task.patch_size": "4",
    "batch_size": "12",
    "steps": "12",
    "eval_every": "6",
    "checkpoint_every": "4",
}


def stop_at(step, progress):
    if progress.step == step and progress.loss is not None:
        raise KeyboardInterrupt


# Matrices that are large enough for a momentum in 8 or 4 bits, some of them square.
WIDE = SETTINGS | {"task.hidden_size": "64", "task.num_layers": "1"}
RELEASED = {"clip_norm": "0", "gradient_release": "true"}


def train(runs_dir, optimizer, strategy=None, stop=None, settings=SETTINGS):
    """Return the metrics of a run, or None where it is stopped at a step."""
    # Under ranks the number of threads is each one's own; it is part of the identity.
    torch.set_num_threads(1)
    ranks = ALONE
    if strategy is not None:
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), strategy)
    run = Run(override(get_recipe("vit-digits"), settings), optimizer, 0.05, 0)
    observe = functools.partial(stop_at, stop)
    try:
        outcome = carry_out(
            run, run.recipe.task.load(), runs_dir, torch.device("cpu"), observe, ranks
        )
    except KeyboardInterrupt:
        return None
    return outcome.result["metrics"], outcome.curve, outcome.result["state_bytes"]


def endings(runs_dir, optimizer):
    """Return where one process finds that a finished run was begun."""
    torch.set_num_threads(1)
    run = Run(override(get_recipe("vit-digits"), SETTINGS), optimizer, 0.05, 0)
    seen = []
    carry_out(run, run.recipe.task.load(), runs_dir, torch.device("cpu"), seen.append)
    return [progress.elsewhere for progress in seen]


def refused(recipe, optimizer):
    """Return what a rank is told of an optimizer before training."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), "fsdp2")
    with pytest.raises(ValueError, match="strategy") as raised:
        prepare([Run(get_recipe(recipe), optimizer, 0.1, 0)], ranks)
    return str(raised.value)


def raise_on_first():
    ranks = Ranks(dist.get_rank(), 2, "ddp")

    def act():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ranks.on_first(act)
    return True


def gather():
    """Return how many whole tensors a rank holds at most, and what it gets."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), "fsdp2")
    model = override(get_recipe("vit-digits"), SETTINGS).task.load().build_model(0)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    ranks.spread(model)
    seen, most, full_tensor = [], 0, DTensor.full_tensor

    def counting(self):
        nonlocal most
        whole = full_tensor(self)
        seen.append(weakref.ref(whole))
        most = max(most, sum(each() is not None for each in seen))
        return whole

    with unittest.mock.patch.object(DTensor, "full_tensor", counting):
        found = gathered([model.state_dict()], ranks)[0]
    if ranks.is_first:
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    else:
        assert set(found.values()) == {None}
    return most, len(seen), len(expected)


def draw_after_saving(path):
    """Return what a rank draws at random once a checkpoint is saved."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), "ddp")
    model = torch.nn.Linear(4, 2)
    optimizer = SGDSaI(model.parameters())
    torch.manual_seed(5 + ranks.rank)
    checkpoint.save(path, model, optimizer, checkpoint.Position(3, 0, 1.0), ranks)
    return torch.rand(3).tolist()


def build(optimizer):
    """Build a wide model and its optimizer, over the ranks if there are any."""
    torch.set_num_threads(1)
    ranks = ALONE
    if dist.is_initialized():
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), "fsdp2")
    recipe = override(get_recipe("vit-digits"), WIDE)
    task = recipe.task.load()
    model = task.build_model(0)
    spread = ranks.spread(model)
    built = build_optimizer(optimizer, model, 0.05, 0.1, 0)
    set_mode(built, training=True)

    def step(count):
        model.zero_grad()
        batch = task.batch(0, count, recipe.batch_size)
        accumulate(task, spread, batch, 1, torch.device("cpu"), ranks)
        built.step()

    return model, built, ranks, step


def save_trained(path, optimizer):
    """Save a checkpoint after three steps."""
    model, built, ranks, step = build(optimizer)
    for count in range(3):
        step(count)
    checkpoint.save(path, model, built, checkpoint.Position(3, 0, 1.0), ranks)


def save_loaded(path, other, optimizer):
    """Load a checkpoint, save what was loaded, and take one more step."""
    model, built, ranks, step = build(optimizer)
    checkpoint.load(path, model, built, ranks)
    checkpoint.save(other, model, built, checkpoint.Position(3, 0, 1.0), ranks)
    step(3)
    return all(whole(p).isfinite().all().item() for p in model.parameters())


def seeds(runs_dir, stop=None):
    """Return the seeds of a rank's random numbers at every step of a run."""
    torch.set_num_threads(1)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), "ddp")
    run = Run(override(get_recipe("vit-digits"), SETTINGS), "sgdsai", 0.05, 0)
    seen = []

    def observe(progress):
        seen.append(torch.initial_seed())
        stop_at(stop, progress)

    with contextlib.suppress(KeyboardInterrupt):
        task = run.recipe.task.load()
        carry_out(run, task, runs_dir, torch.device("cpu"), observe, ranks)
    return set(seen)


def accumulated(strategy, kept):
    """Return the gradient of a shared batch, and its loss."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), strategy)
    task = MaskedTask(kept)
    model = task.build_model(0)
    spread = ranks.spread(model)
    batch = task.batch(0, 0, len(kept))
    loss = accumulate(task, spread, batch, 1, torch.device("cpu"), ranks)
    grads = [whole(p.grad).flatten() for p in model.parameters()]
    return torch.cat(grads).tolist(), ranks.mean(loss)
