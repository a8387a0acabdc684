"""Does the best temperature go as α^((D-1)/(D+1)) at three depths D?

Runs `saiopt noise phase` on digits with 2, 3 and 5 hidden layers, reusing finished
networks, and writes rows, answer, environment and figure beside this file. Further
arguments go to the command; with `--draw` alone it judges and draws the rows that are
there.
"""

import contextlib
import dataclasses
import io
import json
import math
import shutil
import statistics
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from saiopt.analysis.noise_phase import TemperatureCurve, plot_temperatures
from saiopt.cli import main
from saiopt.lab.comparison.intervals import Estimate, estimate
from saiopt.lab.noise.critical import best_temperatures, fit_best
from saiopt.lab.noise.power_law import jackknife

HERE = Path(__file__).parent
SEEDS = range(8)
ALPHAS = [2.0**power for power in range(-9, -1)]
# Smallest T as a power of two and most steps, by hidden layers.
GRIDS = {2: (-15, 20_000), 3: (-14, 10_000), 5: (-14, 10_000)}
Row = dict[str, Any]


def train(layers: int, arguments: list[str]) -> list[Row]:
    """Train a plane and return its rows."""
    output = io.StringIO()
    smallest, max_steps = GRIDS[layers]
    temperatures = [2.0**power for power in range(smallest, -2)]
    command = [
        *("noise", "phase", "--json", "--sizes", "256", "--held-out", "1536"),
        *("--alphas", *map(str, ALPHAS), "--temperatures", *map(str, temperatures)),
        *("--seeds", str(len(SEEDS)), "--precision", "float32"),
        *("--layers", str(layers), "--max-steps", str(max_steps)),
    ]
    with contextlib.redirect_stdout(output):
        code = main([*command, *arguments])
    if code:
        sys.exit(code)
    cells = Path(json.loads(output.getvalue())["folder"]).parent
    shutil.copyfile(cells / "environment.json", HERE / "environment.json")
    rows = map(json.loads, (cells / "cells.jsonl").read_text().splitlines())
    return [{"layers": layers, **row} for row in rows]


def theory(layers: int) -> float:
    """Return k of T_opt ~ α^k."""
    return (layers - 1) / (layers + 1)


def mean_errors(
    rows: list[Row], alpha: float, seeds: Collection[int]
) -> Mapping[float, float]:
    """Average the test error over some seeds, at each T at which all are fitted."""
    errors: dict[float, list[float]] = {}
    lost = set()
    for row in (row for row in rows if row["alpha"] == alpha):
        if row["status"] != "fitted":
            lost.add(row["temperature"])
        elif row["seed"] in seeds:
            errors.setdefault(row["temperature"], []).append(row["test_error"])
    return {t: statistics.fmean(e) for t, e in errors.items() if t not in lost}


def log_valley(errors: Mapping[float, float]) -> float:
    """Return log T_opt, the centre of the part below half way to the minimum."""
    half_way = (min(errors.values()) + max(errors.values())) / 2
    depths = {math.log(t): max(0.0, half_way - e) for t, e in errors.items()}
    weighted = math.fsum(log_t * depth for log_t, depth in depths.items())
    return weighted / math.fsum(depths.values())


def slope(log_temperatures: Mapping[float, float]) -> float:
    """Return k of T ~ α^k, from log T by α."""
    log_alphas = list(map(math.log, log_temperatures))
    return statistics.linear_regression(
        log_alphas, list(log_temperatures.values())
    ).slope


def valley_slope(
    rows: list[Row], seeds: Collection[int], alphas: Collection[float] = ALPHAS
) -> float:
    """Return k of T_opt."""
    return slope({a: log_valley(mean_errors(rows, a, seeds)) for a in alphas})


def largest(rows: list[Row], alpha: float, seed: int) -> float:
    """Return the largest T at which a seed was fitted."""
    return max(
        row["temperature"]
        for row in rows
        if (row["alpha"], row["seed"], row["status"]) == (alpha, seed, "fitted")
    )


def largest_slopes(rows: list[Row]) -> list[float]:
    """Return k of the largest T that converges, of every seed."""
    return [slope({a: math.log(largest(rows, a, s)) for a in ALPHAS}) for s in SEEDS]


def judge(planes: Mapping[int, list[Row]]) -> dict[str, Any]:
    """Fit k of all planes and compare the deepest net with the shallowest."""
    found = []
    for layers, rows in planes.items():
        valleys = {
            alpha: jackknife(
                lambda seeds, rows=rows, alpha=alpha: log_valley(
                    mean_errors(rows, alpha, seeds)
                ),
                SEEDS,
            )
            for alpha in ALPHAS
        }
        bests = best_temperatures(rows)
        found.append(
            {
                "layers": layers,
                "theory": theory(layers),
                "k": jackknife(lambda s, rows=rows: valley_slope(rows, s), SEEDS),
                "k_without_the_two_smallest_alphas": jackknife(
                    lambda s, rows=rows: valley_slope(rows, s, ALPHAS[2:]), SEEDS
                ),
                "k_of_grid_minimum": fit_best(bests),
                "k_of_largest": estimate(largest_slopes(rows)),
                "log_valleys": valleys,
                "grid_minima": bests,
                "counts": {
                    status: sum(row["status"] == status for row in rows)
                    for status in ("fitted", "unfitted", "diverged")
                },
            }
        )
    deep, shallow = planes[5], planes[2]
    difference = jackknife(
        lambda seeds: valley_slope(deep, seeds) - valley_slope(shallow, seeds), SEEDS
    )
    of_largest = zip(largest_slopes(deep), largest_slopes(shallow), strict=True)
    return {
        "planes": found,
        "k_of_5_minus_k_of_2": difference,
        "k_of_largest_of_5_minus_2": estimate([a - b for a, b in of_largest]),
    }


def curve(values: Mapping[float, Estimate], k: float) -> TemperatureCurve:
    """Return a curve from logarithms of T with their intervals."""
    points = [
        (alpha, math.exp(e.mean), math.exp(e.half_width or 0.0))
        for alpha, e in values.items()
    ]
    return TemperatureCurve(points, k)


def draw(planes: Mapping[int, list[Row]], found: dict[str, Any]) -> None:
    """Draw both temperatures against α."""
    valleys, largests = {}, {}
    for plane in found["planes"]:
        name, rows = f"D = {plane['layers']}", planes[plane["layers"]]
        valleys[name] = curve(plane["log_valleys"], plane["theory"])
        logs = {
            alpha: estimate([math.log(largest(rows, alpha, s)) for s in SEEDS])
            for alpha in ALPHAS
        }
        largests[name] = curve(logs, plane["theory"])
    plot_temperatures(
        {"$T_{opt}$": valleys, "largest T that converges": largests},
        "Parity of digits, P = 256, D hidden layers   "
        r"(dotted: theory's slope, $\alpha^{(D-1)/(D+1)}$; bars: 95 % over seeds)",
        [HERE / f"depth.{suffix}" for suffix in ("png", "svg")],
    )


def run(arguments: list[str]) -> None:
    """Carry out the study and keep its files."""
    path = HERE / "results.jsonl"
    if arguments == ["--draw"]:
        rows = list(map(json.loads, path.read_text().splitlines()))
    else:
        rows = []
        for layers in GRIDS:
            rows += train(layers, arguments)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planes: dict[int, list[Row]] = {}
    for row in rows:
        planes.setdefault(row["layers"], []).append(row)
    found = judge(planes)
    draw(planes, found)
    text = json.dumps(found, indent=2, default=dataclasses.asdict)
    (HERE / "answer.json").write_text(text + "\n")


if __name__ == "__main__":
    run(sys.argv[1:])
