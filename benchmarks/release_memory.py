"""Peak memory of training with and without gradient release.

    python benchmarks/release_memory.py

Each case is a process of its own that trains a stack of square matrices for three
steps; the table shows the growth of its resident memory over that of an idle process,
per parameter. The batch is one row, so that activations do not count.
"""

import argparse
import multiprocessing
import resource
import sys

import torch
from torch import nn

from saiopt import SGDSaI, step_in_backward


def resident_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train(case: str, width: int, layers: int, reports: "multiprocessing.Queue") -> None:
    """Report the bytes per parameter of one case."""
    torch.set_num_threads(1)
    nn.Linear(8, 8)(torch.ones(1, 8)).sum().backward()
    idle = resident_bytes()
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = SGDSaI(model.parameters(), lr=1e-3)
    if case == "step_in_backward":
        step_in_backward(optimizer)
    for _ in range(3):
        model(torch.ones(1, width)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    reports.put((resident_bytes() - idle) / (layers * width * width))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    millions = options.layers * options.width**2 / 1e6
    print(f"{millions:.0f} M float32 parameters in {options.layers} blocks")
    for case in ("step", "step_in_backward"):
        reports = context.Queue()
        arguments = (case, options.width, options.layers, reports)
        process = context.Process(target=train, args=arguments)
        process.start()
        print(f"{case:<18}{reports.get():>6.2f} bytes per parameter")
        process.join()


if __name__ == "__main__":
    main()
