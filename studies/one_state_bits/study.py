"""What does momentum in 8 and 4 bits cost the finer rules, and which code costs least?

Trains what is missing, run by run, and writes results.jsonl, environment.json and the
figure beside this file. README.md says the question, the rule and the answer.
"""

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "one_state_choice"))

from candidates import Point, Stepper, candidates
from codes import WAYS, Way
from training import DECAY_PER_STEP, SETTINGS, Row, Rows, all_done, load, trained

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.comparison.intervals import estimate

CANDIDATE = "rows_columns + factored"
STEPS = 300
SEEDS = (0, 1, 2)
MOMENTA = (0.9, 0.85)
# What the first searches of one_state_choice found for the candidate, or began with.
POINTS = {
    "gpt-stdlib": Point(0.02, 0.9, embedding=2.0, head=1.0, vector=0.5),
    "llama": Point(0.02, 0.9, embedding=4.0, head=1.0, vector=0.5),
}
# Smaller blocks keep their momentum in float32, as in the library.
SMALLEST_CODED = 4096


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    way: str
    momentum: float
    batch_size: int
    seed: int
    steps: int = STEPS

    @property
    def key(self) -> Row:
        """What its row begins with."""
        return dataclasses.asdict(self)


class CodedStepper(Stepper):
    """Step as a candidate does, with momenta that lose what a code loses."""

    def __init__(self, way: Way | None, *arguments: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments)
        self._way, self._generator = way, torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Step all parameters, then code the momenta."""
        super().step(factor)
        if self._way is None:
            return
        for param, momentum in self._momenta.items():
            if _is_coded(param):
                momentum.copy_(self._way.lose(momentum, self._generator))


def _is_coded(param: Tensor) -> bool:
    return param.dim() > 1 and param.numel() >= SMALLEST_CODED


def train(cell: Cell) -> Row:
    """Train one run and return its row."""
    model = load(cell.task).build_model(cell.seed)
    point = dataclasses.replace(POINTS[cell.task], momentum=cell.momentum)
    candidate, way = candidates()[CANDIDATE], WAYS[cell.way]
    stepper = CodedStepper(way, model, candidate, point, DECAY_PER_STEP, cell.steps)
    return {**cell.key, **trained(cell, model, stepper, cell.batch_size)}


def cells() -> list[Cell]:
    """Return all runs, `gpt-stdlib` and its usual batch first."""
    return [
        Cell(task, way, momentum, factor * SETTINGS[task].batch_size, seed)
        for task in POINTS
        for factor, momenta in ((1, MOMENTA), (4, MOMENTA[:1]))
        for momentum in momenta
        for seed in SEEDS
        for way in WAYS
    ]


def rows_in(folder: Path) -> Rows:
    """Return the rows of this study."""
    modules = (train.__module__, Way.__module__, Stepper.__module__)
    return Rows(folder, train, Cell, modules)


def run(folder: Path, cell: Cell) -> Row:
    """Return the row of a run, which is trained if it has none."""
    return rows_in(folder).result(cell)


def report(rows: list[Row], folder: Path) -> None:
    """Print what every code costs beside float32, and draw it."""
    panels: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    settings = ("task", "momentum", "batch_size")
    for at in dict.fromkeys(tuple(r[s] for s in settings) for r in rows):
        found: dict[str, dict[int, Any]] = {}
        for row in rows:
            if tuple(row[s] for s in settings) == at:
                found.setdefault(row["way"], {})[row["seed"]] = row["loss"]
        panel = f"{at[0]}, μ {at[1]}, batch {at[2]}"
        base = found.get("float32", {})
        print(f"\n{panel}: loss, minus that of float32")
        for way, losses in found.items():
            pairs = [losses[s] - base[s] for s in sorted(losses.keys() & base.keys())]
            if not pairs or way == "float32":
                continue
            gap = estimate(pairs)
            width = gap.half_width or 0.0
            panels.setdefault(panel, {})[way] = pairs
            intervals.setdefault(panel, {})[way] = (gap.mean, width)
            mean = statistics.fmean(losses.values())
            interval = f" ± {width:.4f}" if gap.count > 1 else ""
            print(f"{way:<24}{mean:.4f} {gap.mean:+.4f}{interval} (n={gap.count})")
    if panels:
        labels = dict.fromkeys(panels, "loss minus that of float32")
        paths = [folder / f"costs.{suffix}" for suffix in ("png", "svg")]
        plot_differences(panels, intervals, labels, paths)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    all_done(((run, options.out, cell) for cell in cells()), options.workers)
    report(rows_in(options.out).all(), options.out)


if __name__ == "__main__":
    main()
