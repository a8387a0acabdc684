"""The processes that train one run together, and how the model lies on them."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from saiopt.lab.task import Batch

Strategy: TypeAlias = Literal["ddp", "fsdp2"]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that train a run.

    Args:
        rank: This process, from 0.
        count: Number of processes.
        strategy: ``"ddp"`` or ``"fsdp2"``; None for one process alone.
    """

    rank: int = 0
    count: int = 1
    strategy: Strategy | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def on_first(self, action: Callable[[], _T]) -> _T | None:
        """Let the first process act while the others wait.

        Args:
            action: What only one process may do.

        Returns:
            What the action returned; None on the other processes.

        Raises:
            Exception: What the action raised, on every process.
        """
        result, error = None, None
        if self.is_first:
            try:
                result = action()
            except Exception as raised:  # it is raised again below
                error = raised
        if self.count > 1:
            told = [error]
            dist.broadcast_object_list(told)
            error = told[0]
        if error is not None:
            raise error
        return result

    def collect(self, value: _T) -> list[_T]:
        """Exchange a value with the other processes.

        Args:
            value: This process's, to be pickled.

        Returns:
            The values of all processes by rank.
        """
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, batch: Batch) -> Batch:
        """Return this process's part of a global batch.

        Args:
            batch: With a multiple of ``count`` examples.

        Returns:
            Every tensor's own rows.
        """
        return {name: t.chunk(self.count)[self.rank] for name, t in batch.items()}

    def parts(self, batch_size: int, micro_batches: int) -> int:
        """Return into how many parts this process splits its share of a batch.

        Args:
            batch_size: Examples of the global batch.
            micro_batches: Parts of the global batch, which the processes share.

        Returns:
            The smallest number of equal parts of which none is larger than one of the
            global batch.
        """
        share = batch_size // self.count
        least = -(-micro_batches // self.count)
        return next(n for n in range(least, share + 1) if share % n == 0)

    def spread(self, model: nn.Module) -> nn.Module:
        """Lay a model over the processes.

        Args:
            model: The same on every process; FSDP2 shards it in place.

        Returns:
            What to call in its place.
        """
        if self.strategy == "ddp":
            return DistributedDataParallel(model)
        if self.strategy == "fsdp2":
            # Inner layers first: an outer one takes what is left.
            for stack in reversed(list(model.modules())):
                if isinstance(stack, nn.ModuleList):
                    for layer in stack:
                        fully_shard(layer)
            fully_shard(model)
        return model

    def adding_up(
        self, model: nn.Module, *, is_last: bool
    ) -> contextlib.AbstractContextManager[object]:
        """Let DDP exchange gradients once for several backward passes.

        FSDP2 reduces after every pass all the same: whole gradients would not fit.

        Args:
            model: From :meth:`spread`.
            is_last: Whether this pass is the last one of the step.

        Returns:
            A context for forward and backward.
        """
        if is_last or not isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext()
        return model.no_sync()

    def forget(self, model: nn.Module) -> None:
        """Let the next pass gather parameters anew.

        FSDP2 keeps the root's gathered after a pass without a backward, and would not
        see it if the optimizer then changed its shards.

        Args:
            model: From :meth:`spread`, after an evaluation.
        """
        if isinstance(model, FSDPModule):
            model.reshard()

    def require_shareable(self, model: nn.Module) -> None:
        """See that several processes would compute what one computes.

        Args:
            model: That they are to train together.

        Raises:
            ValueError: If it has a batch norm, which needs the whole batch.
        """
        has_batch_norm = any(isinstance(m, _BatchNorm) for m in model.modules())
        if self.count > 1 and has_batch_norm:
            raise ValueError(
                "a model with batch norm must be trained in one process, since its "
                f"statistics are those of the whole batch, got {self.count} processes"
            )

    def mean(self, value: Tensor) -> float:
        """Average a number over the processes.

        Args:
            value: 0-d tensor.

        Returns:
            The mean.
        """
        total = value.detach().double()
        if self.count > 1:
            dist.all_reduce(total)
        return (total / self.count).item()


ALONE = Ranks()


class LostProcessError(ConnectionError):
    """Another process of the run has ended before its time."""


@contextlib.contextmanager
def together(
    strategy: Strategy | None,
    device: torch.device,
    batch_size: int,
) -> Iterator[Ranks]:
    """Join the processes that torchrun started, and part from them at the end.

    Args:
        strategy: The user's, None for ``"ddp"`` where there are several processes.
        device: Where this process trains.
        batch_size: Examples of a global batch.

    Yields:
        This process's place.

    Raises:
        LostProcessError: If another process ends before its time.
        ValueError: If a strategy is given to one process alone, or the batch cannot be
            shared evenly.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        if strategy is not None:
            raise ValueError(
                "strategy must be left out in one process, start several with "
                f"torchrun --nproc-per-node 2 -m saiopt ..., got {strategy}"
            )
        yield ALONE
        return
    if batch_size % count:
        raise ValueError(
            f"batch_size must be a multiple of the {count} processes, got {batch_size}"
        )
    _start(device)
    try:
        yield Ranks(dist.get_rank(), count, strategy or "ddp")
        # Workers that do not wait for each other may abort at their end.
        dist.barrier()
    except RuntimeError as error:
        if _is_lost_connection(error):
            raise LostProcessError(
                "another process of this run has ended; the same command goes on from "
                "the last checkpoint"
            ) from error
        raise
    dist.destroy_process_group()


def _start(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
