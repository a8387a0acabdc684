"""Time steps of many small parameters, where the host decides and not the memory bus.

    python benchmarks/host_time.py

writes ``host_time_cpu.csv`` beside this file. One thread; every round visits all
optimizers in a new random order, with gradients made anew as ``zero_grad()`` and a
backward pass make them. ``step_parameter`` steps one parameter after the other.
"""

from __future__ import annotations

import argparse
import csv
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from saiopt import SGDSaI
from saiopt.lab.training.environment import commit, hardware

ENTRIES = 8
Step = Callable[[], object]


def _one_by_one(optimizer: SGDSaI) -> Step:
    group = optimizer.param_groups[0]

    def step() -> None:
        for i, param in enumerate(group["params"]):
            optimizer.step_parameter(param, group, i)

    return step


def _stepping(make: Callable[[list[Tensor]], Optimizer]) -> Callable[..., Step]:
    return lambda params: make(params).step


CASES: dict[str, Callable[[list[Tensor]], Step]] = {
    "saiopt, float32": _stepping(lambda p: SGDSaI(p)),
    "saiopt, int8 asked for": _stepping(lambda p: SGDSaI(p, state_dtype=torch.int8)),
    "saiopt, step_parameter": lambda p: _one_by_one(SGDSaI(p)),
    "torch SGD, fused": _stepping(lambda p: SGD(p, 0.01, momentum=0.9, fused=True)),
    "torch SGD, foreach": _stepping(lambda p: SGD(p, 0.01, momentum=0.9, foreach=True)),
    "torch AdamW, fused": _stepping(lambda p: AdamW(p, fused=True)),
    "torch AdamW, foreach": _stepping(lambda p: AdamW(p, foreach=True)),
}


def _renew(params: Sequence[Tensor]) -> None:
    for param in params:
        param.grad = torch.randn(ENTRIES)


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round's step, by case."""
    prepared = {}
    for name, make in CASES.items():
        params: list[Tensor] = [
            nn.Parameter(torch.randn(ENTRIES)) for _ in range(count)
        ]
        step = make(params)
        for _ in range(2):
            _renew(params)
            step()
        prepared[name] = (params, step)
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    order = list(CASES)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            params, step = prepared[name]
            _renew(params)
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, print a table, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    rows = []
    for count in options.counts:
        seconds = measure(count, options.rounds)
        fused = statistics.median(seconds["torch SGD, fused"])
        for name, values in seconds.items():
            lower, middle, upper = statistics.quantiles(values, n=4)
            rows.append(
                {
                    "parameters": count,
                    "optimizer": name,
                    "ms": round(1e3 * middle, 3),
                    "lower_quartile_ms": round(1e3 * lower, 3),
                    "upper_quartile_ms": round(1e3 * upper, 3),
                    "us_per_parameter": round(1e6 * middle / count, 2),
                    "of_torch_fused_sgd": round(middle / fused, 2),
                    "rounds": options.rounds,
                    "hardware": hardware(torch.device("cpu")),
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "commit": commit(),
                }
            )
            row = rows[-1]
            print(
                f"{count:>5} {name:<24}{row['ms']:>9.3f} ms"
                f"  {row['lower_quartile_ms']:.3f} … {row['upper_quartile_ms']:.3f}"
                f"{row['us_per_parameter']:>8.2f} us each"
                f"{row['of_torch_fused_sgd']:>7.2f} of fused SGD"
            )
    path = options.out / "host_time_cpu.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
