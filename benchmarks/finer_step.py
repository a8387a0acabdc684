"""Time the finer rules on GPT-2 small's shapes, beside what they must be measured by.

    python benchmarks/finer_step.py --threads 2

writes ``finer_step_<device>.csv`` beside this file: `factored`, once calibrated, beside
`gsnr` on all parameters; the `orthogonal` step of the hidden matrices beside
torch.optim.Muon's and beside the matrix products alone that its Newton-Schulz steps
consist of. Every round visits all cases in a new random order. The peak temporary is in
units of the largest hidden matrix in float32.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from saiopt import SGDSaI
from saiopt.bench.clock import peak_temporary_bytes, seconds
from saiopt.lab.training.environment import commit, hardware
from saiopt.scaling.orthogonal import NUM_STEPS

WIDTH, VOCABULARY, CONTEXT = 768, 50257, 1024
HIDDEN = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
VECTORS = (3 * WIDTH, 4 * WIDTH, *[WIDTH] * 6)
BASES = {"factored": "gsnr", "muon": "orthogonal", "products": "orthogonal"}
Step = Callable[[], object]


def allocate(shapes: Sequence[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    """Return parameters with gradients."""
    params: list[Tensor] = []
    for shape in shapes:
        param = nn.Parameter(torch.randn(shape, device=device) * 0.02)
        param.grad = torch.randn(shape, device=device) * 1e-3
        params.append(param)
    return params


def products(shapes: Sequence[tuple[int, int]], device: torch.device) -> Step:
    """Return the matrix products of all Newton-Schulz steps, one after the other."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made = {}
    for shape in dict.fromkeys(shapes):
        short, long = min(shape), max(shape)
        wide = torch.randn(short, long, device=device, dtype=dtype)
        gram = torch.randn(short, short, device=device, dtype=dtype)
        made[shape] = (wide, wide.T.contiguous(), gram)

    def multiply() -> None:
        for shape in shapes:
            wide, tall, gram = made[shape]
            for _ in range(NUM_STEPS):
                torch.mm(wide, tall)
                torch.mm(gram, gram)
                torch.mm(gram, wide)

    return multiply


def cases(layers: int, device: torch.device) -> dict[str, Step]:
    """Return what is timed, by name."""
    hidden = list(HIDDEN) * layers
    outer = [(VOCABULARY, WIDTH), (CONTEXT, WIDTH), (WIDTH,), (WIDTH,)]
    shapes = [*outer, *hidden, *[(n,) for n in VECTORS] * layers]
    made = allocate(shapes, device)
    matrices = made[len(outer) : len(outer) + len(hidden)]
    steps: dict[str, Step] = {}
    for scaling in ("gsnr", "factored"):
        chosen = {"calibration_steps": 1} if scaling == "factored" else {}
        steps[scaling] = SGDSaI(made, 1e-6, scaling=scaling, **chosen).step
    steps["orthogonal"] = SGDSaI(matrices, 1e-6, scaling="orthogonal").step
    steps["muon"] = torch.optim.Muon(
        [m for m in matrices if isinstance(m, nn.Parameter)], 1e-6
    ).step
    steps["products"] = products(hidden, device)
    return steps


def main() -> None:
    """Measure, print a table, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    device = torch.device(options.device)
    steps = cases(options.layers, device)
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(options.rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(seconds(steps[name], device))
    unit = 4 * max(rows * cols for rows, cols in HIDDEN)
    rows = []
    for name, values in times.items():
        base = times[BASES[name]] if name in BASES else values
        ratios = [own / other for own, other in zip(values, base, strict=True)]
        lower, middle, upper = statistics.quantiles(values, n=4)
        rows.append(
            {
                "case": name,
                "ms": round(1e3 * middle, 2),
                "lower_quartile_ms": round(1e3 * lower, 2),
                "upper_quartile_ms": round(1e3 * upper, 2),
                "beside": BASES.get(name, ""),
                "ratio": round(statistics.median(ratios), 3),
                "peak_temporary": round(
                    peak_temporary_bytes(steps[name], device) / unit, 2
                ),
                "layers": options.layers,
                "threads": options.threads,
                "rounds": options.rounds,
                "hardware": hardware(device),
                "torch": torch.__version__,
                "commit": commit(),
            }
        )
        row = rows[-1]
        beside = f"{row['ratio']:>8.3f} of {row['beside']}" if row["beside"] else ""
        print(
            f"{name:<12}{row['ms']:>10.2f} ms  {row['lower_quartile_ms']:.2f} … "
            f"{row['upper_quartile_ms']:.2f}   peak temporary "
            f"{row['peak_temporary']:.2f} matrices{beside}"
        )
    path = options.out / f"finer_step_{options.device}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
