"""How near to theory do the perceptron's exponents come at many points?

Goes on from the rows of study.py, at T = 1, to 262,144 points (65,536 at χ = 0),
reusing finished runs, and writes rows, exponents, environment and figure beside this
file. With `--draw` it judges the rows that are there.
"""

import argparse
import dataclasses
import json
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from saiopt.analysis.noise_perceptron import SizeCurve, plot_perceptron
from saiopt.lab.noise.perceptron import Cell, Settings, open_cells, train_cell
from saiopt.lab.noise.perceptron_exponents import QUANTITIES, theory
from saiopt.lab.noise.power_law import Exponent, fit_exponent, local_slopes

HERE = Path(__file__).parent
SETTINGS = Settings(max_events=100_000_000)
TEMPERATURE = 1.0
SMALL = [2**power for power in range(8, 15)]
FAR = [2**power for power in range(15, 19)]
LATE = 4
Row = dict[str, Any]


def plan() -> list[Cell]:
    """Return the runs, the costly ones of χ = 0 last."""
    new = [(2.0, size, 8) for size in SMALL]
    new += [(chi, size, 8) for size in FAR for chi in (1.0, 2.0, 3.0)]
    new += [(0.0, size, 4) for size in FAR[:2]]
    return [
        Cell(chi, size, TEMPERATURE, seed)
        for chi, size, seeds in new
        for seed in range(seeds)
    ]


def train(runs_dir: Path) -> list[Row]:
    """Train what is not finished yet, one run after the other, and note its cost."""
    finished = open_cells(SETTINGS, runs_dir)
    shutil.copyfile(
        finished.path.with_name("environment.json"), HERE / "far_environment.json"
    )
    # Compiled before anything is timed.
    train_cell(SETTINGS, Cell(1.0, 2**15, TEMPERATURE, -1))
    largest = 0
    for cell in plan():
        if dataclasses.asdict(cell) in finished:
            continue
        started = time.process_time()
        row = train_cell(SETTINGS, cell)
        seconds = time.process_time() - started
        # The peak so far is this size's unless a larger one came before.
        largest = max(largest, cell.size)
        so_far = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak = so_far if cell.size == largest else None
        finished.add([{**row, "cpu_seconds": seconds, "peak_bytes": peak}])
        print(f"χ {cell.chi:g}, P {cell.size}, {seconds:.1f} s", flush=True)
        shutil.copyfile(finished.path, HERE / "far_results.jsonl")
    return rows_in("far_results.jsonl")


def rows_in(name: str) -> list[Row]:
    """Return the rows of a file beside this one."""
    return list(map(json.loads, (HERE / name).read_text().splitlines()))


def fit(rows: list[Row], quantity: str) -> Exponent:
    """Fit a quantity against P."""
    sizes = [float(row["size"]) for row in rows]
    return fit_exponent(sizes, [row[quantity] for row in rows])


def judge(rows: list[Row]) -> list[Row]:
    """Fit the exponents of P over the first and the last four sizes, by χ."""
    found = []
    for chi in sorted({row["chi"] for row in rows}):
        mine = [row for row in rows if row["chi"] == chi and row["fitted"]]
        sizes = sorted({row["size"] for row in mine})
        for quantity in QUANTITIES:
            pairs = [(float(row["size"]), row[quantity]) for row in mine]
            found.append(
                {
                    "chi": chi,
                    "quantity": quantity,
                    "theory": theory(chi, quantity, "size"),
                    "early": fit(
                        [r for r in mine if r["size"] in sizes[:LATE]], quantity
                    ),
                    "late": fit(
                        [r for r in mine if r["size"] in sizes[-LATE:]], quantity
                    ),
                    "late_sizes": sizes[-LATE:],
                    "local": local_slopes(*map(list, zip(*pairs, strict=True))),
                    "unfitted": sum(
                        row["chi"] == chi and not row["fitted"] for row in rows
                    ),
                }
            )
    return found


def cost(rows: list[Row]) -> list[Row]:
    """Average time, events and time per event, by χ and P."""
    by_cell: dict[tuple[float, int], list[Row]] = {}
    for row in rows:
        by_cell.setdefault((row["chi"], row["size"]), []).append(row)
    return [
        {
            "chi": chi,
            "size": size,
            "n": len(mine),
            "cpu_seconds": statistics.fmean(row["cpu_seconds"] for row in mine),
            "events": statistics.fmean(row["events"] for row in mine),
            "seconds_per_event": statistics.fmean(
                row["cpu_seconds"] / row["events"] for row in mine
            ),
            "peak_bytes": max(row["peak_bytes"] or 0 for row in mine) or None,
        }
        for (chi, size), mine in sorted(by_cell.items())
    ]


def draw(rows: list[Row], found: list[Row]) -> None:
    """Draw norm, time and local slopes."""
    labels = {"norm": "norm ‖w‖", "time": "time t*"}
    curves = {
        label: {
            fitted["chi"]: SizeCurve(
                [
                    (row["size"], row[quantity])
                    for row in rows
                    if row["chi"] == fitted["chi"] and row["fitted"]
                ],
                fitted["local"],
                fitted["theory"],
            )
            for fitted in found
            if fitted["quantity"] == quantity
        }
        for quantity, label in labels.items()
    }
    plot_perceptron(
        curves,
        f"Perceptron at T = {TEMPERATURE:g}, d = {SETTINGS.dimension}, "
        f"B = {SETTINGS.batch_size}",
        [HERE / f"far.{suffix}" for suffix in ("png", "svg")],
    )


def main() -> None:
    """Carry out the study and keep its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    new = rows_in("far_results.jsonl") if arguments.draw else train(arguments.runs_dir)
    before = [r for r in rows_in("results.jsonl") if r["temperature"] == TEMPERATURE]
    found = judge([*before, *new])
    draw([*before, *new], found)
    text = json.dumps(
        {"exponents": found, "cost": cost(new)}, indent=2, default=dataclasses.asdict
    )
    (HERE / "far.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
