"""Which execution of the update rule runs."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import NamedTuple, Protocol

from torch import Tensor

from . import along, cpu, library, reference, two_pass
from . import foreach as foreach_execution
from .along import LookAhead, Update
from .blocks import Block, Coefficients


class Table(Protocol):
    """Hold the addresses of blocks: see :class:`saiopt.update.cpu.Table`.

    Attributes:
        sees_writes: whether :meth:`holds` compares the scales.
    """

    sees_writes: bool

    def holds(self, first: int, count: int) -> bool:
        """Tell whether nobody has written the scales where it went unnoticed."""
        ...

    def expect(self, rows: Iterable[int]) -> None:
        """Take the scales of some blocks as they are now for what they should be."""
        ...

    def run(
        self, grads: Sequence[int], coefficients: Coefficients, first: int = 0
    ) -> None:
        """Apply the rule to consecutive blocks, and give them new noise."""
        ...


class Kernel(NamedTuple):
    """Say how the blocks of an execution can be bound to their addresses.

    Args:
        bind: from blocks to a table of them; None for what is never updated.
        knows: tells whether a block can be in a table.
    """

    bind: Callable[[Sequence[Block | None]], Table]
    knows: Callable[[Block], bool]


class Execution(NamedTuple):
    """Hold one execution of the rule.

    Args:
        update: applies it to any blocks.
        look_ahead: advances momenta alone, for directions that are found elsewhere.
        finish: moves parameters along such directions, blocks without momentum.
        kernel: how to bind blocks; None where each step passes the tensors.
    """

    update: Update
    look_ahead: LookAhead
    finish: Update
    kernel: Kernel | None = None


_REFERENCE, _FOREACH, _TWO_PASS = (
    Execution(module.update, along.look_ahead, module.update)
    for module in (reference, foreach_execution, two_pass)
)


def choose(param: Tensor, *, foreach: bool | None, fused: bool | None) -> Execution:
    """Choose the execution for a parameter.

    Args:
        param: the parameter.
        foreach: True for lists of tensors, False against it. None to choose: lists on
            an accelerator, since only there launches cost.
        fused: True for a fused kernel, False against it. None to choose, unless
            `foreach` is given: a kernel where there is one, and on a CPU without one
            torch's own fused SGD for half of the rule.

    Returns:
        The execution; the same object for parameters that can share a call.

    Raises:
        RuntimeError: `fused` is True, and there is no kernel for this parameter.
    """
    chooses = fused is None and foreach is None
    if fused or chooses:
        module = _kernel(param)
        if not isinstance(module, str):
            return _execution(module)
        if fused:
            raise RuntimeError(f"fused must be False or None where {module}, got True")
    if chooses and param.is_cpu:
        return _TWO_PASS
    if foreach is None:
        foreach = param.device.type != "cpu"
    return _FOREACH if foreach else _REFERENCE


@functools.cache
def warn_of_slow_codes() -> None:
    """Say once why momentum in few bits saves memory only, where it has no kernel."""
    reason = library.load()
    if isinstance(reason, str):
        warnings.warn(
            "state_dtype makes steps many times slower without the CPU kernel, and "
            f"saves memory only: {reason}",
            stacklevel=2,
        )


@functools.cache
def _execution(module: ModuleType) -> Execution:
    kernel = Kernel(module.Table, module.knows)
    return Execution(module.update, module.look_ahead, module.finish, kernel)


def _kernel(param: Tensor) -> ModuleType | str:
    """Return the module of the fused execution, or the reason why there is none."""
    if not param.is_cuda:
        return cpu.unavailable(param) or cpu
    if not _has_triton():
        return "triton is not installed"
    # Loaded only where it is needed, since it loads triton.
    from . import triton

    return triton.unavailable(param) or triton


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
