"""What a recipe trains: a model, its batches, its loss and its evaluation."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

Batch: TypeAlias = Mapping[str, Tensor]
"""Tensors that share their first dimension, the examples, so any rank can slice it."""


@runtime_checkable
class Task(Protocol):
    """A model and its data; holds no state that training changes."""

    @property
    def fingerprint(self) -> str:
        """Hash of the data, which is part of every run's identity."""
        ...

    def build_model(self, seed: int) -> nn.Module:
        """Build the model whose initial weights depend on ``seed`` only.

        Under ``torch.device("meta")`` it is built there, without memory.
        """
        ...

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Return the global batch of a step, a pure function of its arguments.

        A resumed run thus needs no data state, and every optimizer sees the same
        examples in the same order.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the 0-d training loss of a batch."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return metrics by name on the held-out data; the model is in eval mode."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A task whose loss is a mean over something else than the examples of a batch."""

    def weight(self, batch: Batch) -> int:
        """Return the number of targets over which the loss of a batch is a mean.

        Of a batch in parts, each counts by this, so that the parts have the loss of the
        whole. It may be 0, where the loss is not used.
        """
        ...


@runtime_checkable
class Illustrated(Protocol):
    """A task whose result is also to be looked at."""

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """Return grids of images by name; the model is in eval mode.

        A grid has the shape (rows, columns, height, width) and values in [0, 1], or
        (rows, columns, 3, height, width) in colour.
        """
        ...


@runtime_checkable
class Brought(Protocol):
    """A task that is made of a user's code."""

    @property
    def code(self) -> str:
        """Hash of that code, which is part of every run's identity."""
        ...


class TaskConfig(Protocol):
    """A frozen dataclass of numbers that says everything about a task."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def load(self) -> Task:
        """Read the data and return the task.

        Raises:
            FileNotFoundError: If the data is not on this machine.
        """
        ...


@runtime_checkable
class Packaged(Protocol):
    """A task's config whose numbers depend on the versions of further packages."""

    packages: ClassVar[tuple[str, ...]]
    """Names of what builds or measures the model, beside torch and transformers."""
