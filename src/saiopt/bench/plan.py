"""What a benchmark is to run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saiopt.choices import require_known
from saiopt.lab.model_memory.models import DTYPES

from .candidates import Candidate, candidates, usual


@dataclass(frozen=True)
class Plan:
    """Hold what to run.

    Args:
        shapes: as :func:`saiopt.bench.shapes.skeleton` takes them.
        optimizers: names of candidates; where empty, the usual ones.
        device: ``cpu`` or ``cuda``.
        dtype: a key of :data:`saiopt.lab.model_memory.models.DTYPES`.
        rounds: passes over all candidates, >= 1, each in another order.
        steps: timed in each round, >= 1.

    Raises:
        ValueError: a name is unknown, a number out of its range, or there is no such
            device.
    """

    shapes: str = "gpt2"
    optimizers: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 5
    steps: int = 3

    def __post_init__(self) -> None:
        known = candidates()
        for name in self.optimizers:
            require_known("optimizers", name, known)
        require_known("dtype", self.dtype, DTYPES)
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.device not in {"cpu", "cuda"}:
            raise ValueError(f"device must be cpu or cuda, got {self.device}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "device must be cpu where there is no CUDA device, got cuda"
            )

    @property
    def chosen(self) -> dict[str, Candidate]:
        """Return the candidates by name."""
        if not self.optimizers:
            return usual()
        known = candidates()
        return {name: known[name] for name in self.optimizers}
