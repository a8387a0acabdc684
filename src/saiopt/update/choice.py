"""Which execution of the update rule runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from . import foreach as foreach_execution
from . import reference
from .blocks import Block, Coefficients

Execution = Callable[[Sequence[Block], Coefficients], None]


def choose(
    params: Sequence[Tensor], *, foreach: bool | None, fused: bool | None
) -> Execution:
    """Choose the execution for the parameters of a group.

    Args:
        params: the parameters.
        foreach: True for lists of tensors, False against it, None to choose: lists
            where every parameter is on an accelerator, since only there launches cost.
        fused: True for a fused kernel, False or None against it.

    Returns:
        A function of blocks and coefficients.

    Raises:
        RuntimeError: `fused` is True, and no fused execution exists.
    """
    if fused:
        raise RuntimeError("fused must be False or None: no fused execution exists yet")
    if foreach is None:
        foreach = all(param.device.type != "cpu" for param in params)
    return foreach_execution.update if foreach else reference.update
