"""Which orthogonal rule, and who takes embeddings, heads and vectors?

Trains what is missing, cell by cell, and writes results.jsonl, environment.json and the
figure beside this file. README.md says the question, the rule and the answer.
"""

import argparse
import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from candidates import (
    Candidate,
    Point,
    Stepper,
    candidates,
    measured_longer,
    moves_along,
    state_numbers,
)
from training import (
    DECAY_PER_STEP,
    SETTINGS,
    Row,
    Rows,
    Setting,
    all_done,
    load,
    trained,
)
from wordy_source import WordySource

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.comparison.intervals import estimate

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
# Runs of a search on seed 0.
BUDGET = 10
LONG = 3000
NUM_LONG = 3
LONG_TASKS = ("llama", "gpt-stdlib")
LONG_ON_ALL_SEEDS = (
    "rows_columns + factored",
    "columns + factored",
    "rows_columns + sinkhorn",
    "nothing + adamw",
)
ORTHOGONAL_LR, ELEMENTWISE_LR = 1e-2, 2e-3
FACTORED = {"embedding": 2.0, "head": 1.0, "vector": 1.0}
NORMED = {"embedding": 0.5, "head": 0.5, "vector": 0.25}
ADAMW = {"embedding": 2.0, "head": 1.0, "vector": 1.0}
STARTS = {
    "factored": FACTORED,
    "sinkhorn": NORMED,
    "row": NORMED,
    "sign": NORMED,
    "adamw": ADAMW,
}
BEFORE = ("nothing", "columns", "rows_columns", "measured")
QUESTIONS = {
    "before and after Newton-Schulz": (
        *(f"{name} + factored" for name in BEFORE),
        "nothing, normuon + factored",
    ),
    "embeddings, heads and vectors": tuple(
        f"rows_columns + {rest}"
        for rest in ("factored", "sinkhorn", "adamw", "row", "sign")
    ),
}
CONTROL = "nothing + adamw"
# Whose third task can decide: what was beaten on the two language models, or beats.
ON_VIT = (
    "rows_columns + factored",
    "nothing + factored",
    "columns + factored",
    CONTROL,
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    steps: int
    candidate: str
    point: Point
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What its row begins with."""
        return dataclasses.asdict(self)


def train(cell: Cell) -> Row:
    """Train one run and return its row."""
    model = load(cell.task).build_model(cell.seed)
    candidate = {**candidates(), **measured_longer()}[cell.candidate]
    stepper = Stepper(model, candidate, cell.point, DECAY_PER_STEP, cell.steps)
    numbers = state_numbers(model, candidate)
    return {
        **cell.key,
        **trained(cell, model, stepper, SETTINGS[cell.task].batch_size),
        "state_per_parameter": numbers / sum(p.numel() for p in model.parameters()),
    }


def rows_in(folder: Path) -> Rows:
    """Return the rows of this study."""
    return Rows(folder, train, Cell, (Stepper.__module__, WordySource.__module__))


def goodness(row: dict[str, Any]) -> tuple[float, ...]:
    """Return what is the larger the better the run was."""
    if "loss" not in row:
        return (-math.inf,)
    by_loss = -row["loss"]
    return (row["accuracy"], by_loss) if "accuracy" in row else (by_loss,)


def start(setting: Setting, candidate: Candidate) -> Point:
    """Return where a search begins."""
    is_orthogonal = candidate.hidden == "orthogonal"
    lr = ORTHOGONAL_LR if is_orthogonal else ELEMENTWISE_LR
    return Point(lr * setting.lr_factor, 0.9, **STARTS[candidate.rest])


def search(rows: Rows, task: str, name: str) -> Point:
    """Go to better neighbours, one number after the other, while the budget lasts."""
    setting = SETTINGS[task]
    best = rows.result(
        Cell(task, setting.steps, name, start(setting, candidates()[name]), 0)
    )
    left = BUDGET - 1 + (len(setting.coordinates) > 4)
    for coordinate in setting.coordinates:
        for side in (1, 0):
            moved = False
            while left > 0:
                near = moves_along(coordinate, Point(**best["point"]))
                near = [p for p in near if is_on(side, coordinate, p, best["point"])]
                if not near:
                    break
                row = rows.result(Cell(task, setting.steps, name, near[0], 0))
                left -= 1
                if goodness(row) <= goodness(best):
                    break
                best, moved = row, True
            if moved:
                break
    return Point(**best["point"])


def is_on(side: int, coordinate: str, point: Point, at: dict[str, float]) -> bool:
    """Tell whether a point lies above another, or below it for side 0."""
    return (getattr(point, coordinate) > at[coordinate]) == bool(side)


def short(folder: Path, task: str, name: str) -> None:
    """Search on seed 0, then train the best on all seeds."""
    rows = rows_in(folder)
    best = search(rows, task, name)
    for seed in SEEDS:
        rows.result(Cell(task, SETTINGS[task].steps, name, best, seed))


def longer(folder: Path, task: str, name: str) -> None:
    """Train the chosen candidate's best point with longer measurements."""
    rows = rows_in(folder)
    best = search(rows, task, "rows_columns + factored")
    for seed in SEEDS:
        rows.result(Cell(task, SETTINGS[task].steps, name, best, seed))


def long(folder: Path, task: str, name: str, seed: int) -> None:
    """Train the best of the short runs for long, at half its learning rate."""
    rows = rows_in(folder)
    found = search(rows, task, name)
    half = dataclasses.replace(found, lr=found.lr / 2)
    rows.result(Cell(task, LONG, name, half, seed))


def best_rows(
    rows: list[dict[str, Any]], task: str, steps: int
) -> dict[str, list[dict[str, Any]]]:
    """Return by candidate the rows of its best point, if they have all seeds."""
    found = {}
    for name in (*candidates(), *measured_longer()):
        mine = [
            r
            for r in rows
            if (r["task"], r["steps"], r["candidate"]) == (task, steps, name)
        ]
        first = [r for r in mine if r["seed"] == 0]
        if not first:
            continue
        point = max(first, key=goodness)["point"]
        chosen = {r["seed"]: r for r in mine if r["point"] == point}
        if set(SEEDS) <= set(chosen):
            found[name] = [chosen[seed] for seed in SEEDS]
    return found


def finalists(rows: list[dict[str, Any]], task: str) -> list[str]:
    """Return the three best of each question on a task, and the control."""
    found = best_rows(rows, task, SETTINGS[task].steps)
    mean = {
        n: statistics.fmean(goodness(r)[0] for r in mine) for n, mine in found.items()
    }
    chosen = [
        name
        for names in QUESTIONS.values()
        for name in sorted(set(names) & set(mean), key=mean.__getitem__)[-NUM_LONG:]
    ]
    return list(dict.fromkeys([*chosen, CONTROL]))


def jobs_of(
    stage: str, folder: Path, seeds: Sequence[int]
) -> Iterator[tuple[Any, ...]]:
    """Yield the calls of a stage, of the long one those of some seeds."""
    if stage == "longer":
        calls = ((task, n) for task in SETTINGS for n in measured_longer())
        yield from ((longer, folder, *call) for call in calls)
        return
    if stage != "long":
        names = ON_VIT if stage == "vit-digits" else tuple(candidates())
        yield from ((short, folder, stage, name) for name in names)
        return
    rows = rows_in(folder).all()
    found = {task: finalists(rows, task) for task in LONG_TASKS}
    for seed in seeds:
        for task, names in found.items():
            kept = set(names if seed == SEEDS[0] else LONG_ON_ALL_SEEDS)
            yield from ((long, folder, task, n, seed) for n in names if n in kept)


def report(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print the table of every task and length, and draw the differences."""
    panels: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    labels: dict[str, str] = {}
    for task, steps in dict.fromkeys((r["task"], r["steps"]) for r in rows):
        found = best_rows(rows, task, steps)
        if CONTROL not in found:
            continue
        metric = "accuracy" if "accuracy" in found[CONTROL][0] else "loss"
        panel = f"{task}, {steps} steps"
        labels[panel] = f"{metric} minus that of {CONTROL}"
        print(f"\n{panel}: {metric} of seeds {SEEDS}, minus {CONTROL}")
        for name, mine in sorted(found.items(), key=lambda item: -mean_of(item[1])):
            values = [r.get(metric, math.nan) for r in mine]
            pairs = [v - c[metric] for v, c in zip(values, found[CONTROL], strict=True)]
            gap = estimate(pairs)
            width = gap.half_width or 0.0
            panels.setdefault(panel, {})[name] = pairs
            intervals.setdefault(panel, {})[name] = (gap.mean, width)
            at = " ".join(f"{k} {v:g}" for k, v in mine[0]["point"].items())
            mean, numbers = statistics.fmean(values), mine[0]["state_per_parameter"]
            print(
                f"{name:<48}{mean:.4f} {gap.mean:+.4f} ± {width:.4f}  "
                f"{numbers:.2f} numbers/parameter  {at}"
            )
        print(f"deviation of a difference over seeds: {noise(found):.4f}")
    if panels:
        paths = [folder / f"differences.{suffix}" for suffix in ("png", "svg")]
        plot_differences(panels, intervals, labels, paths)


def mean_of(rows: list[dict[str, Any]]) -> float:
    """Return the mean goodness."""
    return statistics.fmean(goodness(r)[0] for r in rows)


def noise(found: dict[str, list[dict[str, Any]]]) -> float:
    """Return the pooled deviation over seeds of the difference of two candidates."""
    control = [goodness(r)[0] for r in found[CONTROL]]
    variances = [
        statistics.variance(
            [goodness(r)[0] - c for r, c in zip(mine, control, strict=True)]
        )
        for name, mine in found.items()
        if name != CONTROL
    ]
    return math.sqrt(statistics.fmean(variances)) if variances else math.nan


def main() -> None:
    """Run the study."""
    stages = (*SETTINGS, "long", "longer")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="*", default=stages, choices=stages)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, choices=SEEDS)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for stage in options.stages:
        all_done(jobs_of(stage, options.out, options.seeds), options.workers)
    report(rows_in(options.out).all(), options.out)


if __name__ == "__main__":
    main()
