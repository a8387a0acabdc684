"""Samples of one candidate, collected over interleaved rounds."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.memory.caching_allocator import footprint
from saiopt.memory.state_allocation import state_tensors, storage_bytes
from saiopt.optimizer import SGDSaI

from .candidates import Candidate, silenced
from .clock import peak_temporary_bytes, seconds, synchronize

_SLOW_SECONDS = 1.0


@dataclass
class Samples:
    """Hold what the rounds found for one candidate.

    Args:
        step_seconds: of steps after the first two.
        first_step_seconds: of each new optimizer's first step, which allocates the
            state; ours calibrates in it.
        calibration_seconds: of first steps whose state had been allocated; ours only.
        state_bytes: of the state's tensors.
        temporary_bytes: peak of a step above the level before it.
        predicted_bytes: by which the state should raise
            ``torch.cuda.memory_allocated``.
        allocated_bytes: by which the state raised ``torch.cuda.memory_allocated``.
        reserved_bytes: by which it raised ``torch.cuda.memory_reserved``.
        failure: why the candidate cannot run, None where it runs.
        is_slow: whether a step takes so long that one round must do.
    """

    step_seconds: list[float] = field(default_factory=list)
    first_step_seconds: list[float] = field(default_factory=list)
    calibration_seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    temporary_bytes: int = 0
    predicted_bytes: int = 0
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    failure: str | None = None
    is_slow: bool = False


@dataclass(frozen=True)
class Bench:
    """Hold what all candidates of a run share.

    Args:
        model: whose parameters every candidate steps in its turn.
        device: of the parameters.
        steps: timed in each round.
    """

    model: nn.Module
    device: torch.device
    steps: int

    @property
    def params(self) -> list[nn.Parameter]:
        """Return the parameters that are stepped."""
        return list(self.model.parameters())

    def inspect(self, candidate: Candidate, samples: Samples) -> None:
        """Step a candidate without timing it, and measure its memory.

        Args:
            candidate: to be run.
            samples: to be filled; `failure` where the candidate cannot run.
        """
        with self._guarded(samples):
            self._measure_memory(candidate, samples)

    def sample(self, candidate: Candidate, samples: Samples) -> None:
        """Run one round of a candidate.

        Args:
            candidate: to be run.
            samples: to be extended.
        """
        with self._guarded(samples):
            self._time(candidate, samples)
        if candidate.spec.is_ours and samples.failure is None:
            with self._guarded(samples):
                self._time_calibration(candidate, samples)

    @contextlib.contextmanager
    def _guarded(self, samples: Samples) -> Iterator[None]:
        """Keep a failure from ending the run, and free what a candidate held."""
        try:
            with silenced():
                yield
        # Another package may fail in any way, a missing compiler included.
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            samples.failure = f"{type(error).__name__}: {reason}"
        self._clear()

    def _time(self, candidate: Candidate, samples: Samples) -> None:
        optimizer = candidate.build(self.model)
        samples.first_step_seconds.append(self._step_seconds(optimizer))
        optimizer.step()
        for _ in range(1 if samples.is_slow else self.steps):
            samples.step_seconds.append(self._step_seconds(optimizer))

    def _time_calibration(self, candidate: Candidate, samples: Samples) -> None:
        optimizer = candidate.build(self.model)
        _allocate_state(optimizer)
        samples.calibration_seconds.append(self._step_seconds(optimizer))

    def _measure_memory(self, candidate: Candidate, samples: Samples) -> None:
        before = self._device_memory()
        optimizer = candidate.build(self.model)
        optimizer.step()
        samples.is_slow = self._step_seconds(optimizer) > _SLOW_SECONDS
        if self.device.type == "cuda":
            # What the step left cached is no part of the state.
            self._clear()
            allocated, reserved = self._device_memory()
            samples.allocated_bytes = allocated - before[0]
            samples.reserved_bytes = reserved - before[1]
        sizes = [(t.device, storage_bytes(t)) for t in state_tensors(optimizer)]
        samples.state_bytes = sum(size for _, size in sizes)
        on_device = [size for device, size in sizes if device.type == self.device.type]
        samples.predicted_bytes = footprint(on_device).block_bytes
        samples.temporary_bytes = peak_temporary_bytes(optimizer.step, self.device)

    def _step_seconds(self, optimizer: Optimizer) -> float:
        return seconds(optimizer.step, self.device)

    def _device_memory(self) -> tuple[int, int]:
        if self.device.type != "cuda":
            return 0, 0
        synchronize(self.device)
        return (
            torch.cuda.memory_allocated(self.device),
            torch.cuda.memory_reserved(self.device),
        )

    def _clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _allocate_state(optimizer: Optimizer) -> None:
    if isinstance(optimizer, SGDSaI):
        optimizer.assign_scales({})
