"""The perceptron study as files: rows, exponents and picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from saiopt.analysis.noise_perceptron import SizeCurve, plot_perceptron
from saiopt.lab.atomic import alone, write_json
from saiopt.lab.noise.cells import middle
from saiopt.lab.noise.perceptron import Settings
from saiopt.lab.noise.perceptron_exponents import Fit
from saiopt.lab.studies.ledger import Row

_LABELS = {"norm": "norm ‖w‖", "time": "time t*"}


def write_report(
    folder: Path, settings: Settings, rows: Sequence[Row], fits: Sequence[Fit]
) -> None:
    """Write ``exponents.json`` and, with two sizes or more, ``perceptron.png`` and svg.

    Args:
        folder: Where to write.
        settings: Of the study.
        rows: All cells.
        fits: Of the rows.
    """
    temperature = middle([row["temperature"] for row in rows])
    curves = {
        label: {
            fit.chi: SizeCurve(
                [
                    (row["size"], row[quantity])
                    for row in rows
                    if row["chi"] == fit.chi
                    and row["temperature"] == temperature
                    and row["fitted"]
                ],
                fit.local,
                fit.theory,
            )
            for fit in fits
            if (fit.quantity, fit.against) == (quantity, "size")
        }
        for quantity, label in _LABELS.items()
    }
    title = (
        f"Perceptron at T = {temperature:g}, d = {settings.dimension}, "
        f"B = {settings.batch_size}"
    )
    paths = [folder / f"perceptron.{suffix}" for suffix in ("png", "svg")]
    with alone(folder / "lock"):
        write_json(folder / "exponents.json", list(map(dataclasses.asdict, fits)))
        plot_perceptron(curves, title, paths)
