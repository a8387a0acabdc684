"""Which part of the finer rules does it?

Trains what is missing, run by run, and writes results.jsonl, environment.json and the
figure beside this file. README.md says the question, the rule and the answer.
"""

import argparse
import dataclasses
import math
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "one_state_choice"))

from candidates import Point, Stepper
from training import DECAY_PER_STEP, SETTINGS, Row, Rows, all_done, load, trained
from variants import Variant, VariantStepper, variants

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.comparison.intervals import estimate
from saiopt.lab.comparison.paired import Pairing, corrected_verdicts

SEEDS = (0, 1, 2, 3)
FACTORS = (0.5, 1.0, 2.0)
BASES = ("orthogonal", "factored")
LONGER = 5
# What the choice study found; Sinkhorn, sign and AdamW for the rest had their own.
POINTS = {
    ("gpt-stdlib", "orthogonal"): Point(0.02, 0.9, 2.0, 1.0, 0.5),
    ("gpt-stdlib", "factored"): Point(0.001, 0.9, 8.0, 1.0, 1.0),
    ("llama", "orthogonal"): Point(0.02, 0.9, 4.0, 1.0, 1.0),
    ("llama", "factored"): Point(0.0005, 0.9, 4.0, 16.0, 1.0),
    ("vit-digits", "orthogonal"): Point(0.001, 0.9, 2.0, 1.0, 1.0),
    ("vit-digits", "factored"): Point(0.0005, 0.9, 2.0, 1.0, 1.0),
}
# Multipliers of the rest in units of factored's, by the size of their first steps.
NORMED = {"sinkhorn": 0.25, "sign": 0.25, "adamw": 1.0}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    steps: int
    variant: str
    factor: float
    seed: int

    @property
    def key(self) -> Row:
        """What its row begins with."""
        return dataclasses.asdict(self)


def point_of(cell: Cell, variant: Variant) -> Point:
    """Return a run's numbers."""
    base = POINTS[cell.task, cell.variant.split(",")[0]]
    is_long = cell.steps > SETTINGS[cell.task].steps
    share = NORMED.get(variant.rest, 1.0)
    # An estimated distance is the learning rate itself.
    lr = 1.0 if variant.dynamic == "distance" else base.lr
    return dataclasses.replace(
        base,
        lr=lr * cell.factor * (0.5 if is_long else 1.0),
        embedding=base.embedding * share,
        head=base.head * share,
        vector=base.vector * share,
    )


def train(cell: Cell) -> Row:
    """Train one run and return its row."""
    model = load(cell.task).build_model(cell.seed)
    variant = variants()[cell.variant]
    stepper = VariantStepper(model, variant, point_of(cell, variant), DECAY_PER_STEP)
    size = SETTINGS[cell.task].batch_size
    schedule = "constant" if variant.dynamic == "schedule_free" else "cosine"
    found = trained(cell, model, stepper, size, schedule)
    return {**cell.key, **found, "drift": stepper.drift()}


def rows_in(folder: Path) -> Rows:
    """Return the rows of this study."""
    return Rows(folder, train, Cell, (Variant.__module__, Stepper.__module__))


def goodness(row: Row) -> tuple[float, ...]:
    """Return what is the larger the better the run was."""
    if "loss" not in row:
        return (-math.inf,)
    return (row["accuracy"], -row["loss"]) if "accuracy" in row else (-row["loss"],)


def run(folder: Path, task: str, steps: int, name: str) -> None:
    """Choose a variant's learning rate on seed 0, then train it on all seeds."""
    rows = rows_in(folder)
    made = {f: rows.result(Cell(task, steps, name, f, SEEDS[0])) for f in FACTORS}
    while True:
        best = max(made, key=lambda factor: (*goodness(made[factor]), -factor))
        further = {min(made): best / 2, max(made): best * 2}.get(best)
        if further is None or len(made) >= 2 * len(FACTORS):
            break
        made[further] = rows.result(Cell(task, steps, name, further, SEEDS[0]))
    for seed in SEEDS[1:]:
        rows.result(Cell(task, steps, name, best, seed))


def best_rows(rows: list[Row], task: str, steps: int) -> dict[str, list[Row]]:
    """Return the rows of every variant at its best learning rate, all seeds."""
    found = {}
    for name in variants():
        mine = [
            r
            for r in rows
            if (r["task"], r["steps"], r["variant"]) == (task, steps, name)
        ]
        first = [r for r in mine if r["seed"] == SEEDS[0]]
        if not first:
            continue
        factor = max(first, key=lambda r: (*goodness(r), -r["factor"]))["factor"]
        chosen = {r["seed"]: r for r in mine if r["factor"] == factor}
        if set(SEEDS) <= chosen.keys():
            found[name] = [chosen[seed] for seed in SEEDS]
    return found


def report(rows: list[Row], folder: Path) -> None:
    """Print what every part is worth, task by task and length by length; draw it."""
    panels: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    labels: dict[str, str] = {}
    for task, steps in dict.fromkeys((r["task"], r["steps"]) for r in rows):
        found = best_rows(rows, task, steps)
        for base in BASES:
            names = [n for n in found if n.startswith(f"{base},")]
            if base not in found or not names:
                continue
            own = [goodness(r)[0] for r in found[base]]
            judged = [
                Pairing(
                    task,
                    name,
                    base,
                    [a - goodness(r)[0] for a, r in zip(own, found[name], strict=True)],
                )
                for name in names
            ]
            panel = f"{task}, {steps} steps, {base}"
            labels[panel] = "what the part is worth (nats, or accuracy)"
            print(f"\n{panel}: {statistics.fmean(own):.4f}; worth of each part")
            for one, verdict in zip(judged, corrected_verdicts(judged), strict=True):
                gap = estimate(one.gains)
                width = gap.half_width or 0.0
                panels.setdefault(panel, {})[one.optimizer] = list(one.gains)
                intervals.setdefault(panel, {})[one.optimizer] = (gap.mean, width)
                at = found[one.optimizer][0]["factor"]
                print(
                    f"{one.optimizer:<40}{gap.mean:+.4f} ± {width:.4f} "
                    f"{verdict:<7} {at:g} of its lr"
                )
    if panels:
        paths = [folder / f"parts.{suffix}" for suffix in ("png", "svg")]
        plot_differences(panels, intervals, labels, paths)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--variants", nargs="+", default=variants(), metavar="NAME")
    parser.add_argument("--longer", action="store_true", help="five times the steps")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    times = LONGER if options.longer else 1
    jobs = (
        (run, options.out, task, times * SETTINGS[task].steps, name)
        for task in options.tasks
        for name in options.variants
    )
    all_done(jobs, options.workers)
    report(rows_in(options.out).all(), options.out)


if __name__ == "__main__":
    main()
