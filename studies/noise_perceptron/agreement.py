"""Does the event-driven simulation have the law of plain SGD?

Trains 2500 perceptrons of either kind, each on its own points. Writes agreement.json
and the figure beside this file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from saiopt.analysis.noise_perceptron import plot_agreement
from saiopt.lab.noise.perceptron_data import numpy_generator, signed_points
from saiopt.lab.noise.perceptron_kernel import train
from saiopt.lab.noise.perceptron_plain import train_plainly

HERE = Path(__file__).parent
SIZE, DIMENSION, CHI, BATCH_SIZE, RUNS = 48, 8, 1.0, 2, 2500
THRESHOLD = 1 / 32768
QUANTITIES = {"time": "steps to zero loss", "norm": "norm ‖w‖/T", "signal": "w₁/T"}


def outcome(kind: str, run: int) -> tuple[float, float, float]:
    """Train one perceptron; return steps, ‖w‖/T and w₁/T."""
    rng = numpy_generator(run, kind == "plain")
    points = signed_points(SIZE, DIMENSION, CHI, rng)
    settings = (THRESHOLD, BATCH_SIZE, 10**6, rng)
    if kind == "plain":
        weights, steps, fitted = train_plainly(points, *settings)
    else:
        weights, steps, _, fitted = train(points, *settings)
    if not fitted:
        raise RuntimeError(f"run must be fitted, got {kind} {run}")
    return float(steps), float(np.linalg.norm(weights)), float(weights[0])


def main() -> None:
    """Run the study."""
    both = {
        kind: np.array([outcome(kind, run) for run in range(RUNS)])
        for kind in ("events", "plain")
    }
    result = {}
    for column, name in enumerate(QUANTITIES):
        events, plain = (both[kind][:, column] for kind in ("events", "plain"))
        test: Any = ks_2samp(events, plain)
        result[name] = {
            "n": RUNS,
            "p": float(test.pvalue),
            "mean_log_ratio": float(np.log(events).mean() - np.log(plain).mean()),
            "half_width": float(
                1.96 * np.hypot(np.log(events).std(), np.log(plain).std()) / RUNS**0.5
            ),
        }
    text = json.dumps(result, indent=2)
    print(text)
    (HERE / "agreement.json").write_text(text + "\n")
    samples = {
        label: {
            "event by event": both["events"][:, column].tolist(),
            "plain SGD": both["plain"][:, column].tolist(),
        }
        for column, label in enumerate(QUANTITIES.values())
    }
    plot_agreement(
        samples,
        f"χ = {CHI:g}, P = {SIZE}, d = {DIMENSION}, {RUNS} runs each",
        [HERE / f"agreement.{suffix}" for suffix in ("png", "svg")],
    )


if __name__ == "__main__":
    main()
