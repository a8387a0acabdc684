"""Time the CPU kernel that a wheel brings along beside one that is compiled here.

Two processes, each with one of them, step four matrices of 2048 squared on one thread;
every round visits both and all state dtypes in a new random order. Prints medians and
quartiles in ms.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from saiopt.update import prebuilt

STEPPER = """
import sys, time
from pathlib import Path
import torch
from saiopt import SGDSaI
from saiopt.update import prebuilt

if sys.argv[1]:
    prebuilt.DIRECTORY = Path(sys.argv[1])
torch.set_num_threads(1)
optimizers = {}
for name in sys.argv[2:]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(2048, 2048)) for _ in range(4)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizers[name] = SGDSaI(params, 1e-3, state_dtype=name, fused=True)
    optimizers[name].step()
for line in sys.stdin:
    start = time.perf_counter()
    optimizers[line.strip()].step()
    print(time.perf_counter() - start, flush=True)
"""
DTYPES = ("float32", "bfloat16", "int8", "int4")


def main() -> None:
    """Time both and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        prebuilt.build(Path(folder))
        places = {"compiled here": "", "of a wheel": folder}
        steppers = {
            name: subprocess.Popen(
                [sys.executable, "-c", STEPPER, place, *DTYPES],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name, place in places.items()
        }
        cases = [(dtype, name) for dtype in DTYPES for name in steppers]
        times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for _ in range(rounds):
            for dtype, name in random.sample(cases, len(cases)):
                times[dtype, name].append(_time(steppers[name], dtype))
        for stepper in steppers.values():
            stepper.communicate()
    for (dtype, name), found in times.items():
        low, median, high = (1e3 * t for t in statistics.quantiles(found, n=4))
        print(f"{dtype:<10}{name:<15}{median:7.2f} ms, {low:.2f} to {high:.2f}")


def _time(stepper: subprocess.Popen[str], dtype: str) -> float:
    assert stepper.stdin is not None
    assert stepper.stdout is not None
    stepper.stdin.write(dtype + "\n")
    stepper.stdin.flush()
    return float(stepper.stdout.readline())


if __name__ == "__main__":
    main()
