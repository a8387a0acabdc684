"""What a step does to which blocks of a group."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .sharding import local_block, local_grad
from .update import Block, Coefficients, Execution, advance, decay


class Work(NamedTuple):
    """Hold one call of an execution.

    Args:
        execution: what to call.
        blocks: the tensors.
        coefficients: the numbers that they share.
    """

    execution: Execution
    blocks: Sequence[Block]
    coefficients: Coefficients

    def run(self) -> None:
        """Make the call."""
        self.execution(self.blocks, self.coefficients)


def plan_group(
    group: Mapping[str, Any],
    params: Sequence[Tensor],
    states: Mapping[Tensor, Mapping[str, Tensor]],
    execution: Execution,
    *,
    pending: Collection[Tensor],
    begun: Collection[Tensor],
) -> Iterator[Work]:
    """Sort blocks by what the step does to them, and give them new noise.

    Args:
        group: the options of the group.
        params: the parameters to update; those without a gradient are left out.
        states: the state of each parameter.
        execution: the execution of the rule.
        pending: parameters that have not begun: they only decay.
        begun: parameters that begin at this step: their momentum becomes the gradient.

    Yields:
        The calls to make, in any order.
    """
    starting, running, waiting = [], [], []
    for param in params:
        grad = local_grad(param)
        if grad is None:
            continue
        block = local_block(param, grad, states[param])
        if group["stochastic_rounding"] is False:
            block = block._replace(rounding_seed=None)
        if param in pending:
            waiting.append(block)
        else:
            (starting if param in begun else running).append(block)
    # A dummy step, of rate 0, leaves even the noise as it was.
    if group["weight_decay"] == 0 or _is_zero(group["lr"]):
        waiting = []
    advance([*starting, *running, *waiting])
    if starting:
        yield Work(execution, starting, Coefficients.of(group, starting=True))
    if running:
        yield Work(execution, running, Coefficients.of(group, starting=False))
    if waiting:
        yield Work(decay, waiting, Coefficients.of(group, starting=False))


def _is_zero(lr: float | Tensor) -> bool:
    # What a tensor holds only its device knows.
    return not isinstance(lr, Tensor) and lr == 0
