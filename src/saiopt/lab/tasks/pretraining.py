"""Weights that an adaptation starts from: trained once, by a fixed rule, and kept."""

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saiopt.lab.atomic import UNREADABLE, alone, write_atomically
from saiopt.lab.data.cache_folder import make_cache_folder
from saiopt.lab.identity import code_hash, identity_hash
from saiopt.lab.schedules import lr_factor
from saiopt.lab.task import Packaged, Task, TaskConfig

_SEED = 0
_WARMUP_SHARE = 0.05
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """AdamW with a cosine schedule, warm-up, clipping at norm 1 and seed 0.

    Args:
        steps: Optimizer steps.
        batch_size: Examples per step.
        lr: Peak learning rate.
    """

    steps: int
    batch_size: int
    lr: float


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's weights after pre-training.

    Args:
        tensors: Its state_dict.
        fingerprint: Hash of the tensors.
    """

    tensors: Mapping[str, Tensor]
    fingerprint: str


def pretrained(
    config: TaskConfig,
    task: Task,
    plan: Pretraining,
    sizes: Mapping[str, Any],
    folder: Path | None = None,
) -> Weights:
    """Read a task's pre-trained weights; train them where there are none.

    Processes that ask at the same time wait for the one that trains. A damaged file is
    made again, and so are weights that other code or other packages have made.

    Args:
        config: What the weights are for; it builds ``task``.
        task: What is pre-trained on.
        plan: How.
        sizes: Of the model, as JSON types.
        folder: Where weights are kept, by default :func:`make_cache_folder`.

    Returns:
        The weights, the same on every call.
    """
    folder = folder or make_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    packages = config.packages if isinstance(config, Packaged) else ()
    key = [
        type(task).__name__,
        task.fingerprint,
        dataclasses.asdict(plan),
        dict(sizes),
        torch.__version__,
        code_hash(type(config).__module__),
        {name: version(name) for name in ("transformers", *packages)},
    ]
    path = folder / f"pretrained-{identity_hash(key)}.pt"
    with alone(path.with_suffix(".lock")):
        weights = _read(path)
        if weights is None:
            sys.stderr.write(f"pre-training once, {plan.steps} steps, kept in {path}\n")
            weights = _weights(_trained(task, plan))
            content = dataclasses.asdict(weights)
            write_atomically(path, lambda file: torch.save(content, file))
    return weights


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy pre-trained weights into a model, unless it has no memory.

    Args:
        model: Of the pre-trained shape.
        weights: What to copy.
    """
    if next(model.parameters()).device.type != "meta":
        model.load_state_dict(dict(weights.tensors))


def _trained(task: Task, plan: Pretraining) -> dict[str, Tensor]:
    try:
        return _train(task, plan)
    except (ValueError, FileNotFoundError) as error:
        # While a task is loaded, these would be taken for errors of its user.
        raise RuntimeError(f"pre-training must succeed, got {error!r}") from error


def _train(task: Task, plan: Pretraining) -> dict[str, Tensor]:
    with _one_thread():
        model = task.build_model(_SEED).train()
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
        warmup = int(_WARMUP_SHARE * plan.steps)
        for step in range(plan.steps):
            factor = lr_factor("cosine", step, plan.steps, warmup)
            optimizer.param_groups[0]["lr"] = plan.lr * factor
            optimizer.zero_grad()
            task.loss(model, task.batch(_SEED, step, plan.batch_size)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            optimizer.step()
    return model.state_dict()


def _weights(tensors: Mapping[str, Tensor]) -> Weights:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return Weights(dict(tensors), digest.hexdigest()[:16])


def _read(path: Path) -> Weights | None:
    try:
        content = torch.load(path, weights_only=True)
        weights = _weights(content["tensors"])
    except (OSError, *UNREADABLE):
        return None
    return weights if weights.fingerprint == content["fingerprint"] else None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let the weights' last bits not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
