"""Which execution of the update rule runs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence

from torch import Tensor

from . import cpu, reference, two_pass
from . import foreach as foreach_execution
from .blocks import Block, Coefficients

Execution = Callable[[Sequence[Block], Coefficients], None]


def choose(
    params: Sequence[Tensor], *, foreach: bool | None, fused: bool | None
) -> Execution:
    """Choose the execution for the parameters of a group.

    Args:
        params: the parameters.
        foreach: True for lists of tensors, False against it. None to choose: lists
            where every parameter is on an accelerator, since only there launches cost.
        fused: True for a fused kernel, False against it. None to choose, unless
            `foreach` is given: a kernel where there is one, and on a CPU without one
            torch's own fused SGD for half of the rule.

    Returns:
        A function of blocks and coefficients.

    Raises:
        RuntimeError: `fused` is True, and there is no kernel for these parameters.
    """
    chooses = fused is None and foreach is None
    if fused or chooses:
        kernel = _kernel(params)
        if not isinstance(kernel, str):
            return kernel
        if fused:
            raise RuntimeError(f"fused must be False or None where {kernel}, got True")
    if chooses and all(param.is_cpu for param in params):
        return two_pass.update
    if foreach is None:
        foreach = all(param.device.type != "cpu" for param in params)
    return foreach_execution.update if foreach else reference.update


def _kernel(params: Sequence[Tensor]) -> Execution | str:
    """Return the fused execution, or the reason why there is none."""
    if not any(param.is_cuda for param in params):
        return cpu.unavailable(params) or cpu.update
    if not _has_triton():
        return "triton is not installed"
    # Loaded only where it is needed, since it loads triton.
    from . import triton

    return triton.unavailable(params) or triton.update


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
