"""Any task whose pre-trained model is adapted by LoRA."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saiopt.lab.task import Batch, Illustrated, Task
from saiopt.lab.tasks.lora import add_lora
from saiopt.lab.tasks.pretraining import Weights, load_weights


class AdaptedTask:
    """Train adapters on a pre-trained model that stays as it is.

    Args:
        target: The data to adapt to, and the model before it is adapted.
        weights: What the model was pre-trained to.
        layers: Ends of the names of the layers to adapt.
        rank: r of the adapters.
        alpha: Their output is scaled by alpha/r.
    """

    def __init__(
        self,
        target: Task,
        weights: Weights,
        layers: Sequence[str],
        rank: int,
        alpha: int,
    ) -> None:
        self._target, self._weights = target, weights
        self._layers, self._rank, self._alpha = layers, rank, alpha
        self.fingerprint = f"{target.fingerprint}-{weights.fingerprint}"

    def build_model(self, seed: int) -> nn.Module:
        """Build the pre-trained model and its adapters.

        Args:
            seed: Of the adapters' A; B is zero.

        Returns:
            The model on the CPU.
        """
        model = self._target.build_model(seed)
        load_weights(model, self._weights)
        torch.manual_seed(seed)
        return add_lora(model, self._layers, self._rank, self._alpha)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Return the target's batch.

        Args:
            seed: Of the run.
            step: Counted from 0.
            size: Number of examples.

        Returns:
            What the target's loss needs.
        """
        return self._target.batch(seed, step, size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the target's loss.

        Args:
            model: From :meth:`build_model`.
            batch: From :meth:`batch`.

        Returns:
            A 0-d tensor.
        """
        return self._target.loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the target's metrics.

        Args:
            model: In eval mode.

        Returns:
            Metrics by name.
        """
        return self._target.evaluate(model)

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the target's pictures.

        Args:
            model: In eval mode.

        Returns:
            Grids of images by name, none where the target has none.
        """
        target = self._target
        return target.pictures(model) if isinstance(target, Illustrated) else {}
