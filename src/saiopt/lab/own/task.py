"""A task that is made of a user's model, data, loss and metric."""

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torch.utils.data.sampler import RandomSampler, SequentialSampler

from saiopt.lab.data.digits import shuffled_rows
from saiopt.lab.draws import generator, seed_of
from saiopt.lab.own.code import own_code
from saiopt.lab.task import Batch

Data: TypeAlias = "Dataset[Any] | DataLoader[Any]"
Forward: TypeAlias = Callable[[nn.Module, Any], tuple[Any, Any]]
_EVALUATION_BATCH = 256
# Every tenth example is held out where the user has no data for it.
_HELD_OUT = 10
# Examples by which data is known again, beside their number.
_LOOKED_AT = 64


class _Table(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...  # noqa: ANN401 - a user's data


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a user's recipe is made of.

    Args:
        model: Builds the model, its weights drawn from torch's generator.
        data: Examples to train on, or what returns them.
        loss: Of outputs and targets, a 0-d tensor, the mean over the examples.
        metric: The same for what is compared; None for the loss.
        held_out: As ``data``; None for every tenth example of that.
        forward: From model and batch to outputs and targets.
        reference: ``file.py:name`` that leads to the recipe, None of a notebook's.
    """

    model: Callable[[], nn.Module]
    data: "Data | Callable[[], Data]"
    loss: Callable[[Any, Any], Tensor]
    metric: "Callable[[Any, Any], Tensor | float] | None"
    held_out: "Data | Callable[[], Data] | None"
    forward: Forward
    reference: str | None = None

    @property
    def code(self) -> str:
        """Hash of the code behind them."""
        known = (self.model, self.loss, self.metric, self.forward)
        sources = (self.data, self.held_out)
        return own_code(
            thing
            for thing in (*known, *(s for s in sources if _is_builder(s)))
            if thing is not None
        )


class OwnTask:
    """Train a user's model on a user's data.

    Args:
        parts: Model, data, loss and metric.

    Raises:
        ValueError: If the data is of no use.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._train = _Examples("data", parts.data)
        rows = torch.arange(len(self._train))
        if parts.held_out is None:
            mixed = torch.randperm(len(rows), generator=generator(0))
            count = len(rows) // _HELD_OUT
            if not count:
                raise ValueError(
                    f"data must hold at least {_HELD_OUT} examples, of which some are "
                    f"held out, got {len(rows)}"
                )
            self._held_out, self._held_out_rows = self._train, mixed[:count]
            self._rows = mixed[count:].sort().values
        else:
            self._held_out = _Examples("held_out", parts.held_out)
            self._held_out_rows = torch.arange(len(self._held_out))
            self._rows = rows
        self.code = parts.code
        self.fingerprint = self._fingerprint()

    def build_model(self, seed: int) -> nn.Module:
        """Build the user's model.

        Args:
            seed: Of the initial weights.

        Returns:
            The model.

        Raises:
            ValueError: If it is none.
        """
        torch.manual_seed(seed)
        try:
            model = self._parts.model()
        except (NotImplementedError, RuntimeError):
            # Not every model can be built without memory.
            if torch.get_default_device().type != "meta":
                raise
            with torch.device("cpu"):
                model = self._parts.model().to("meta")
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model must be a function that returns a torch.nn.Module, got one "
                f"that returns a {type(model).__name__}"
            )
        return model

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Take examples in a new random order every epoch; an epoch drops its rest.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of examples.

        Returns:
            The tensors of the batch, numbered in their order.

        Raises:
            ValueError: If there are fewer examples than ``size``.
        """
        rows = self._rows[shuffled_rows(len(self._rows), size, seed, step)]
        with _drawing(seed_of(seed, step)):
            return self._train.batch(rows.tolist())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the user's loss.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor.
        """
        return self._parts.loss(*self._outputs(model, self._train, batch))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the means of loss and metric over the held-out examples.

        Args:
            model: In eval mode.

        Returns:
            ``loss`` and the metric by its name.
        """
        device = next(model.parameters()).device
        measures = {"loss": self._parts.loss}
        if self._parts.metric is not None:
            measures[name_of(self._parts.metric)] = cast("Any", self._parts.metric)
        sums, count = dict.fromkeys(measures, 0.0), 0
        with _drawing(0):
            for rows in self._held_out_rows.split(_EVALUATION_BATCH):
                batch = self._held_out.batch(rows.tolist())
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                found = self._outputs(model, self._held_out, moved)
                count += len(rows)
                for name, measure in measures.items():
                    sums[name] += len(rows) * float(measure(*found))
        return {name: total / count for name, total in sums.items()}

    def _outputs(
        self, model: nn.Module, examples: "_Examples", batch: Batch
    ) -> tuple[Any, Any]:
        return self._parts.forward(model, examples.restored(batch))

    def _fingerprint(self) -> str:
        """Hash what tells data and model from others, wherever their code lies."""
        digest = hashlib.sha256()
        with torch.device("meta"):
            model = self.build_model(0)
        digest.update(repr(model).encode())
        for name, param in model.named_parameters():
            digest.update(f"{name} {tuple(param.shape)} {param.dtype}".encode())
        with _drawing(0):
            for examples in (self._train, self._held_out):
                examples.add_to(digest)
        return digest.hexdigest()[:16]


class _Examples:
    """Examples by their number, and batches of them as tensors."""

    def __init__(self, name: str, source: "Data | Callable[[], Data]") -> None:
        data: Any = cast("Any", source)() if _is_builder(source) else source
        collate = default_collate
        if isinstance(data, DataLoader):
            if not isinstance(data.sampler, (RandomSampler, SequentialSampler)):
                raise ValueError(
                    f"{name} must be a DataLoader without a sampler of its own, since "
                    "the lab orders examples by seed, got "
                    f"{type(data.sampler).__name__}"
                )
            data, collate = data.dataset, data.collate_fn
        if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
            raise ValueError(
                f"{name} must be a dataset with a length and numbered examples, or a "
                f"DataLoader of one, got a {type(data).__name__}"
            )
        self._name, self._collate = name, collate
        self._table = cast("_Table", data)
        self._spec: pytree.TreeSpec | None = None

    def __len__(self) -> int:
        return len(self._table)

    def batch(self, rows: Sequence[int]) -> Batch:
        take: Callable[[Sequence[int]], Any] | None
        take = getattr(self._table, "__getitems__", None)
        items = take(rows) if take is not None else [self._table[row] for row in rows]
        leaves, self._spec = pytree.tree_flatten(self._collate(items))
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (len(rows),):
                kind = getattr(leaf, "shape", type(leaf).__name__)
                raise ValueError(
                    f"{self._name} must give batches of tensors whose first dimension "
                    f"is the examples, got {kind} for {len(rows)} examples"
                )
        return {str(index): leaf for index, leaf in enumerate(leaves)}

    def restored(self, batch: Batch) -> Any:  # noqa: ANN401 - a user's batch
        assert self._spec is not None
        return pytree.tree_unflatten(list(batch.values()), self._spec)

    def add_to(self, digest: Any) -> None:  # noqa: ANN401 - a hash
        count = len(self)
        digest.update(f"{count}".encode())
        for row in np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int):
            for leaf in pytree.tree_leaves(self._table[int(row)]):
                is_array = isinstance(leaf, (Tensor, np.ndarray))
                values = np.asarray(leaf).tobytes() if is_array else repr(leaf).encode()
                digest.update(values)


def pair(model: nn.Module, batch: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Call a model with the first of two parts of a batch.

    Args:
        model: The user's.
        batch: Inputs and targets.

    Returns:
        Outputs and targets.

    Raises:
        ValueError: If the batch is no pair.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            "data must give pairs of inputs and targets where the recipe has no "
            f"forward(model, batch), got a {type(batch).__name__}"
        )
    inputs, targets = batch
    return model(inputs), targets


def name_of(function: object) -> str:
    """Return the name of a function or of an object's class."""
    return getattr(function, "__name__", type(function).__name__)


def _is_builder(source: object) -> bool:
    return callable(source) and not isinstance(source, (Dataset, DataLoader))


@contextlib.contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Let what augments examples draw the same whenever it is asked for the same."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - users' draws
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
