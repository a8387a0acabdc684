"""Stepping during the backward pass, so that gradients need not all live at once."""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import _engine_run_backward
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from saiopt.distributed.fsdp1 import is_flattened
from saiopt.distributed.shards import is_dtensor

from .sgdsai import SGDSaI, sgdsai_of

# A loop that calls `step()` after several backward passes means one step of them all.
_ACCUMULATES = (
    "step_in_backward must step each parameter once between two calls of "
    "optimizer.step(), got several backward passes: run all but the last micro-batch "
    "within handle.paused(), or do not accumulate"
)


class ReleaseHandle:
    """Hold what :func:`step_in_backward` set up."""

    def __init__(self, optimizer: SGDSaI) -> None:
        self._optimizer = optimizer
        self._active = True
        # Filled at the first gradient, when every wrapper around the model is made.
        self._reduced_late: set[Tensor] | None = None
        self._waiting: list[Callable[[], None]] = []
        self._segments = _Segments()
        # Autograd runs hooks on one thread per device.
        self._lock = threading.RLock()
        # How often each parameter stepped since the last call of `optimizer.step()`.
        self._steps: Counter[Tensor] = Counter()
        self._is_stepped = False
        self._hooks = [
            _hook_on_gradient(param, self._hook(index, i))
            for index, group in enumerate(optimizer.param_groups)
            for i, param in enumerate(group["params"])
            if _may_train(param)
        ]
        self._hooks.append(optimizer.register_step_pre_hook(self._on_step))

    def remove(self) -> None:
        """Return to gradients that wait for `optimizer.step()`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Accumulate gradients instead of stepping.

        All micro-batches but the last run their backward pass in here. Their gradients
        live until the last backward pass, which adds to them, steps and frees them, so
        that nothing is saved while they accumulate.

        Yields:
            Nothing.
        """
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def _hook(self, index: int, i: int) -> Callable[[Tensor], None]:
        def step(param: Tensor) -> None:
            self._count(param)
            # Loading a state_dict puts other groups in their places.
            group = self._optimizer.param_groups[index]
            self._optimizer.step_parameter(param, group, i)
            param.grad = None

        def on_gradient(param: Tensor) -> None:
            if not self._active:
                return
            with self._lock:
                self._segments.refuse_second(param)
                if self._reduced_late is None:
                    _refuse_grad_scaler()
                    self._reduced_late = _ddp_params()
                    _refuse_frozen_heap(self._optimizer, self._reduced_late)
                if param in self._reduced_late:
                    self._wait(lambda: step(param))
                else:
                    step(param)

        return on_gradient

    def _count(self, param: Tensor) -> None:
        """Refuse a second step where the loop has shown that it calls `step()`."""
        if self._is_stepped and self._steps[param] > 0:
            raise RuntimeError(_ACCUMULATES)
        self._steps[param] += 1

    def _on_step(self, *_: object) -> None:
        """Take note of a call of `optimizer.step()`, which finds nothing to do."""
        if any(count > 1 for count in self._steps.values()) and not self._is_stepped:
            self._steps.clear()
            raise RuntimeError(_ACCUMULATES)
        self._is_stepped = True
        self._steps.clear()

    def _wait(self, step: Callable[[], None]) -> None:
        """Step after DDP's own callback, which writes the reduced gradients.

        DDP queues its callback with its last bucket, and callbacks run in order: one
        that is queued by a callback comes after it.
        """
        if not self._waiting:
            engine = Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self._step_waiting))
        self._waiting.append(step)

    def _step_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for step in waiting:
            step()


class _Segments:
    """Know the segments of reentrant checkpointing that make up one backward pass.

    Each runs a backward pass of its own within the outer one, so that a layer in
    several segments gets a gradient from each. Autograd numbers the passes in the order
    in which they begin: the next outer one takes a number too.
    """

    def __init__(self) -> None:
        self._task, self._newest, self._is_nested = -1, -1, False
        self._stepped: set[Tensor] = set()

    def refuse_second(self, param: Tensor) -> None:
        """Raise where a gradient is not the first of its parameter in this pass."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._is_nested = _is_within_backward()
            if task > self._newest + (1 if self._is_nested else 0):
                self._stepped.clear()
            self._task, self._newest = task, max(task, self._newest)
        if not self._is_nested:
            return
        if param in self._stepped:
            raise RuntimeError(
                "step_in_backward must see one gradient per parameter and pass, got "
                "several by reentrant checkpointing of a layer that is used several "
                "times: give torch.utils.checkpoint use_reentrant=False"
            )
        self._stepped.add(param)


def _is_within_backward() -> bool:
    """Tell whether a function's own backward has called for the present pass.

    FSDP2 calls hooks from its own functions' backward, which is no pass of its own.
    """
    frame, has_pass = sys._getframe(), False
    while frame is not None:
        has_pass = has_pass or frame.f_code is _engine_run_backward.__code__
        if has_pass and frame.f_code is BackwardCFunction.apply.__code__:
            return True
        frame = frame.f_back
    return False


def step_in_backward(optimizer: Optimizer) -> ReleaseHandle:
    """Step each parameter as soon as its gradient is complete, and free the gradient.

    Follows the trajectory of `optimizer.step()`, while the backward pass holds the
    gradients of a few parameters instead of all: with float32 weights and momentum, 8
    bytes per parameter instead of 12. `optimizer.step()` then finds no gradient and
    does nothing. Works in a single process, with FSDP2, and with DDP, whose buckets
    keep all gradients, so that nothing is saved there. Parameters that are frozen now
    step as soon as they get gradients. With FSDP2 the ranks wait for the one that
    orthogonalises a matrix.

    What needs all gradients before the first step cannot work with it: clipping by the
    global norm finds no gradient (it returns 0, and Trainer and Lightning clip unless
    told otherwise), `scaling="gsnr_max"` and a GradScaler are refused. To accumulate
    gradients see :meth:`ReleaseHandle.paused`; a loop that accumulates without it, as
    those of frameworks do, is refused once it calls `optimizer.step()`.

    Args:
        optimizer: an SGDSaI, or a wrapper that has one as its `.optimizer`. Its
            parameters must not be added to or replaced while the handle lives. Its
            state may be loaded and its options changed.

    Returns:
        A handle with `remove()` and `paused()`.

    Raises:
        RuntimeError: the model is wrapped by FSDP1. In the first backward pass: a
            GradScaler is in use, `gc.freeze()` may hide DDP, or a layer that is used
            several times is checkpointed reentrantly, whose first part has stepped.
            Later: a parameter steps twice between two calls of `optimizer.step()`.
        TypeError: the optimizer is not SGDSaI and wraps none.
        ValueError: a group scales by `"gsnr_max"`, or is `replicated`.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> handle = step_in_backward(SGDSaI(model.parameters(), lr=0.1))
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> model.weight.grad is None
        True
        >>> handle.remove()
    """
    own = sgdsai_of(optimizer)
    if any(group["replicated"] for group in own.param_groups):
        raise ValueError(
            "replicated must be False when stepping during backward, where each matrix "
            "is orthogonalised as its gradient comes, got True"
        )
    if any(group["scaling"] == "gsnr_max" for group in own.param_groups):
        raise ValueError(
            "scaling must not be 'gsnr_max' when stepping during backward: it needs "
            "the gradients of all blocks before the first step"
        )
    if any(is_flattened(p) for g in own.param_groups for p in g["params"]):
        raise RuntimeError(
            "step_in_backward must not be used with FullyShardedDataParallel, where "
            "original parameters never see their gradients accumulate: use fully_shard"
        )
    return ReleaseHandle(own)


def _may_train(param: Tensor) -> bool:
    """Tell whether a parameter can have gradients: integers do not take a hook."""
    return param.is_floating_point() or param.is_complex()


def _hook_on_gradient(param: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Register a hook that outlives freezing; torch takes none while frozen."""
    trains = param.requires_grad
    try:
        return param.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    finally:
        param.requires_grad_(trains)


def _refuse_grad_scaler() -> None:
    """Raise where gradients may be scaled: unscaling would come after the steps.

    One that `gc.freeze()` hides is not found here: its own `step` raises, having found
    no gradient to unscale.
    """
    for scaler in _live_objects(torch.amp.GradScaler):
        if scaler.is_enabled() and scaler._scale is not None:
            raise RuntimeError(
                "step_in_backward must not be used with a GradScaler, which unscales "
                "and checks all gradients before the first step"
            )


def _ddp_params() -> set[Tensor]:
    """Return the parameters whose gradients DDP reduces after they are accumulated."""
    if not (dist.is_available() and dist.is_initialized()):
        return set()
    from torch.nn.parallel import DistributedDataParallel

    modules = _live_objects(DistributedDataParallel)
    return {param for module in modules for param in module._module_parameters}


def _refuse_frozen_heap(optimizer: SGDSaI, reduced: Container[Tensor]) -> None:
    """Raise where DDP may be hidden: the gradients would be those of one rank."""
    if gc.get_freeze_count() == 0 or not _has_ranks():
        return
    params = (p for group in optimizer.param_groups for p in group["params"])
    if any(p.requires_grad and not is_dtensor(p) and p not in reduced for p in params):
        raise RuntimeError(
            "gc.freeze() must not hide DistributedDataParallel from step_in_backward: "
            "call it after the first backward pass"
        )


def _has_ranks() -> bool:
    ready = dist.is_available() and dist.is_initialized()
    return ready and dist.get_world_size() > 1


def _live_objects(kind: type) -> list[Any]:
    """Return the instances of a class that exist: nothing links a parameter to them."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]
