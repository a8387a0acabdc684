"""``saiopt noise perceptron``."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json, print_tables
from saiopt.cli.refusal import RefusalError, refusing, require_writable

if TYPE_CHECKING:
    from saiopt.lab.noise.perceptron import Settings
    from saiopt.lab.studies.ledger import Ledger, Row

_NUMBERS = arg(metavar="X ...")


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """Fit a perceptron with SGD until every point is fitted, and measure exponents.

    Args:
        chi: Points lie near the boundary with density |x|^chi.
        sizes: Numbers of points P, swept at the middle temperature.
        temperatures: T = lr / batch size, swept at the middle size.
        seeds: Number of seeds.
        alpha: Scale of the loss.
        dimension: Of the points.
        batch_size: Points of a step.
        max_events: Weight changes before a run is given up and reported as such.
        runs_dir: Keeps the finished runs, which are reused.
        workers: Processes that train.
        json: Print JSON only; progress goes to stderr.
    """

    chi: Annotated[tuple[float, ...], _NUMBERS] = (0.0, 1.0, 3.0)
    sizes: Annotated[tuple[int, ...], _NUMBERS] = (
        256, 512, 1024, 2048, 4096, 8192, 16384,
    )  # fmt: skip
    temperatures: Annotated[tuple[float, ...], _NUMBERS] = (
        0.0625,
        0.25,
        1.0,
        4.0,
        16.0,
    )
    seeds: Annotated[int, arg(metavar="N")] = 8
    alpha: Annotated[float, arg(metavar="X")] = 32768.0
    dimension: Annotated[int, arg(metavar="N")] = 64
    batch_size: Annotated[int, arg(metavar="N")] = 2
    max_events: Annotated[int, arg(metavar="N")] = 5_000_000
    runs_dir: Annotated[Path, arg(metavar="FOLDER")] = Path("runs")
    workers: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: one per core)")
    ] = None
    json: Annotated[bool, arg(help_behavior_hint="")] = False

    def __call__(self) -> None:
        """Train, fit the exponents and print them."""
        from saiopt.lab.noise.perceptron import Settings
        from saiopt.lab.noise.perceptron_exponents import fit_all
        from saiopt.lab.noise.perceptron_report import write_report
        from saiopt.lab.noise.perceptron_table import exponent_table, unfitted_text

        with refusing(ValueError):
            settings = Settings(
                self.dimension, self.batch_size, self.alpha, self.max_events
            )
        finished, rows = self._train(settings)
        fits = fit_all(rows)
        folder = finished.path.parent
        write_report(folder, settings, rows, fits)
        if self.json:
            exponents = list(map(dataclasses.asdict, fits))
            print_json({"folder": folder.name, "exponents": exponents})
            return
        console = new_console()
        console.print()
        print_tables(console, exponent_table(fits))
        if unfitted := unfitted_text(fits, self.max_events):
            console.print(f"\n{unfitted}")
        console.print(f"\nPlot, exponents and rows: {folder}/", soft_wrap=True)

    def _train(self, settings: "Settings") -> "tuple[Ledger, list[Row]]":
        from saiopt.lab.noise.counting import counting
        from saiopt.lab.noise.perceptron import open_cells, plan, train_cells
        from saiopt.lab.training.run_folder import RunFolderError

        if self.sizes and min(self.sizes) < self.batch_size:
            raise RefusalError(
                f"sizes must be at least batch_size, got {min(self.sizes)}"
            )
        workers = (os.cpu_count() or 1) if self.workers is None else self.workers
        if workers < 1:
            raise RefusalError(f"workers must be at least 1, got {workers}")
        with refusing(ValueError):
            cells = plan(self.chi, self.sizes, self.temperatures, self.seeds)
        require_writable(self.runs_dir)
        with refusing(RunFolderError):
            finished = open_cells(settings, self.runs_dir)
        with (
            refusing(RunFolderError),
            counting(len(cells), "runs", new_console(stderr=self.json)) as count,
        ):
            rows = train_cells(
                settings,
                cells,
                finished,
                workers,
                lambda row, _: count(1, f"χ {row['chi']:g}, P {row['size']}"),
            )
        return finished, rows
