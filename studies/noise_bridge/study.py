"""Does scaling at initialisation move the critical temperature of SGD noise?

Trains the cells of README.md, reusing finished ones, and writes results.jsonl,
answer.json, environment.json and the figure beside this file.
"""

import argparse
import itertools
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.noise_phase import plot_weight_change
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.noise.critical import Crossover, crossovers
from saiopt.lab.noise.layer_scales import OPTIMIZERS
from saiopt.lab.noise.parity import load_images
from saiopt.lab.noise.phase import Settings, open_cells, plan, train_cells
from saiopt.lab.noise.phase_report import change_curves, critical_by

HERE = Path(__file__).parent
CPU = torch.device("cpu")
ALPHA, SIZE, SEEDS = 64.0, 256, 6
TEMPERATURES = [2.0**power for power in range(-13, -2, 2)]
PAIRS = (
    ("sgdsai", "sgd"),
    ("sgdsai-sqrt-numel", "sgd"),
    ("sgdsai", "sgdsai-sqrt-numel"),
    ("sgdsai-factored", "sgd"),
    ("sgdsai-factored", "sgdsai"),
)


def paired(found: list[Crossover], rule: str, control: str) -> dict[str, Any]:
    """Compare two rules over the seeds that have a T_c with both."""
    by_rule = {
        name: {c.seed: c.temperature for c in found if c.optimizer == name}
        for name in (rule, control)
    }
    seeds = sorted(by_rule[rule])
    pairs = [(by_rule[rule][seed], by_rule[control][seed]) for seed in seeds]
    ratios = [math.log2(ours / theirs) for ours, theirs in pairs if ours and theirs]
    result: dict[str, Any] = {"rule": rule, "control": control, "n": len(ratios)}
    if len(ratios) > 1:
        interval = estimate(ratios)
        result |= {"log2_ratio": interval.mean, "half_width": interval.half_width}
    return result


def level_of(rows: list[dict[str, Any]]) -> float:
    """Return the relative weight change that T_c is read at, for all rules alike.

    It is twice that of plain SGD at the smallest T, in the mean over seeds.
    """
    least = [
        row["weight_change"]
        for row in rows
        if row["optimizer"] == "sgd" and row["temperature"] == TEMPERATURES[0]
    ]
    return 2 * statistics.fmean(least)


def train() -> tuple[list[dict[str, Any]], Path]:
    """Train the networks; return their rows and the file of their environment."""
    images, settings = load_images("digits"), Settings()
    finished = open_cells(settings, images, Path("runs"), CPU)
    cells = plan(list(OPTIMIZERS), [ALPHA], TEMPERATURES, [SIZE], SEEDS)
    ended = itertools.count()

    def observe(made: int, step: int) -> None:
        for _ in range(made):
            print(f"{next(ended) + 1}/{len(cells)} at step {step}", flush=True)

    rows = train_cells(settings, cells, images, finished, CPU, observe)
    return rows, finished.path.with_name("environment.json")


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows, origin = train()
    found = {"twice": crossovers(rows), "level": crossovers(rows, level_of(rows))}
    answer = [
        {"definition": name, **paired(critical, *pair)}
        for name, critical in found.items()
        for pair in PAIRS
    ]
    for line in answer:
        print(json.dumps(line))
    out.mkdir(parents=True, exist_ok=True)
    (out / "answer.json").write_text(json.dumps(answer, indent=2) + "\n")
    (out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    shutil.copyfile(origin, out / "environment.json")
    plot_weight_change(
        change_curves(rows, "optimizer"),
        critical_by(found["twice"], "optimizer"),
        rf"Parity of digits, P = {SIZE}, $\alpha$ = {ALPHA:g}, {SEEDS} seeds",
        [out / f"bridge.{suffix}" for suffix in ("png", "svg")],
    )


if __name__ == "__main__":
    main()
