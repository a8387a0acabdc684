"""The rows that a benchmark makes, and how they are kept."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from saiopt.lab.model_memory.models import DTYPES
from saiopt.lab.training.environment import commit, hardware

from .plan import Plan
from .samples import Bench, Samples


@dataclass(frozen=True)
class BenchRow:
    """Hold one optimizer's result. Times are milliseconds.

    Args:
        optimizer: its label.
        package: that it comes from, with its version.
        status: ``ok``, ``not installed``, or why it did not run.
        shapes: name of the shapes.
        num_params: entries of all parameters.
        dtype: of parameters and gradients.
        device: ``cpu`` or ``cuda``.
        hardware: name of the processor.
        threads: of torch on the CPU.
        torch: its version.
        commit: of this repository.
        rounds: n of the medians of first steps and calibrations.
        num_steps: n of the median of steps.
        step_ms: median.
        step_ms_q1: lower quartile.
        step_ms_q3: upper quartile.
        first_step_ms: median; allocates the state.
        calibration_ms: median of first steps on state that was allocated before.
        state_bytes_per_param: of the state's tensors.
        temporary_bytes: peak of a step above the level before it.
        predicted_bytes: by which the state should raise ``memory_allocated`` on a GPU,
            by :mod:`saiopt.memory`.
        allocated_bytes: by which it raised ``memory_allocated``.
        reserved_bytes: by which it raised ``memory_reserved``.
        bandwidth_gb_per_s: median of the bandwidth in the same rounds, 10⁹ bytes.
        floor_bytes_per_param: read θ and g, write θ, read and write the state once.
        floor_ms: those bytes at that bandwidth.
        ratio_to_floor: step_ms / floor_ms.
    """

    optimizer: str
    package: str
    status: str
    shapes: str
    num_params: int
    dtype: str
    device: str
    hardware: str
    threads: int
    torch: str
    commit: str | None
    rounds: int
    num_steps: int = 0
    step_ms: float | None = None
    step_ms_q1: float | None = None
    step_ms_q3: float | None = None
    first_step_ms: float | None = None
    calibration_ms: float | None = None
    state_bytes_per_param: float | None = None
    temporary_bytes: int | None = None
    predicted_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    bandwidth_gb_per_s: float | None = None
    floor_bytes_per_param: float | None = None
    floor_ms: float | None = None
    ratio_to_floor: float | None = None


def make_row(
    plan: Plan, bench: Bench, name: str, samples: Samples, bytes_per_second: float
) -> BenchRow:
    """Sum up what the rounds found for one candidate.

    Args:
        plan: what was run.
        bench: what the candidates shared.
        name: of the candidate.
        samples: that the rounds collected.
        bytes_per_second: bandwidth in the same rounds.

    Returns:
        The row.
    """
    candidate = plan.chosen[name]
    num_params = sum(p.numel() for p in bench.params)
    row = BenchRow(
        optimizer=candidate.label,
        package=candidate.spec.installed or candidate.spec.distribution,
        status=samples.failure or "ok",
        shapes=plan.shapes,
        num_params=num_params,
        dtype=plan.dtype,
        device=plan.device,
        hardware=hardware(bench.device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(),
        rounds=plan.rounds,
    )
    if samples.failure is not None:
        return row
    return _measured(row, samples, bytes_per_second)


def _measured(row: BenchRow, samples: Samples, bytes_per_second: float) -> BenchRow:
    """Return a row with the results."""
    quartiles = _quartiles([1e3 * s for s in samples.step_seconds])
    state = samples.state_bytes / row.num_params
    floor_bytes = 3 * DTYPES[row.dtype].itemsize + 2 * state
    floor_ms = 1e3 * floor_bytes * row.num_params / bytes_per_second
    calibration = samples.calibration_seconds
    return replace(
        row,
        num_steps=len(samples.step_seconds),
        step_ms_q1=quartiles[0],
        step_ms=quartiles[1],
        step_ms_q3=quartiles[2],
        first_step_ms=1e3 * statistics.median(samples.first_step_seconds),
        calibration_ms=1e3 * statistics.median(calibration) if calibration else None,
        state_bytes_per_param=state,
        temporary_bytes=samples.temporary_bytes,
        predicted_bytes=samples.predicted_bytes,
        allocated_bytes=samples.allocated_bytes,
        reserved_bytes=samples.reserved_bytes,
        bandwidth_gb_per_s=bytes_per_second / 1e9,
        floor_bytes_per_param=floor_bytes,
        floor_ms=floor_ms,
        ratio_to_floor=quartiles[1] / floor_ms,
    )


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return list(values) * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def write_csv(rows: Sequence[BenchRow], path: Path) -> None:
    """Write rows as CSV with a heading.

    Args:
        rows: to be written.
        path: the file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(BenchRow)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: _rounded(v) for k, v in asdict(row).items()})


def _rounded(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
