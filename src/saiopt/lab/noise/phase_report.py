"""A study of planes as files: fits, heat maps and critical temperatures."""

import dataclasses
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from saiopt.analysis.noise_phase import (
    PlaneCell,
    plot_kernel_regime,
    plot_plane,
    plot_weight_change,
)
from saiopt.lab.atomic import alone, write_json
from saiopt.lab.noise.cells import middle
from saiopt.lab.noise.critical import (
    Best,
    Crossover,
    best_temperatures,
    crossovers,
    fit_best,
    fit_critical,
)
from saiopt.lab.noise.gains import Gain, WayOut, gains, ways_out
from saiopt.lab.noise.kernel_regime import (
    LEVELS,
    KernelRegime,
    kernel_regime,
    mean_curve,
)
from saiopt.lab.noise.power_law import Exponent
from saiopt.lab.studies.ledger import Row

QUANTITIES = {
    "test_error": "test error",
    "weight_change": "relative weight change",
    "time": "training time t*",
}


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study of one optimizer found.

    Args:
        size: P of the plane.
        alpha: α of the sweep of P.
        best: T_opt for every α.
        best_exponent: k of T_opt ~ α^k over α < 1.
        critical: T_c of every P and seed at ``alpha``, by twice the smallest change.
        critical_exponent: -a of T_c ~ P^-a.
        counts: Number of cells by status.
        kernel: Exponents of weight change, time and T_c at ``alpha``.
        gains: What noise does to the test error at every α.
        ways: The warmer way out of the kernel regime, and that of smaller α.
    """

    size: int
    alpha: float
    best: list[Best]
    best_exponent: Exponent | None
    critical: list[Crossover]
    critical_exponent: Exponent | None
    counts: dict[str, int]
    kernel: KernelRegime | None = None
    gains: list[Gain] = dataclasses.field(default_factory=list)
    ways: tuple[WayOut, WayOut] | None = None


def find(rows: Sequence[Row], critical_alpha: float | None = None) -> Findings:
    """Fit everything.

    Args:
        rows: Of one optimizer.
        critical_alpha: The α of the sweep of P, the middle one unless given.

    Returns:
        What they say.
    """
    size = middle([row["size"] for row in rows])
    alpha = critical_alpha or middle([row["alpha"] for row in rows])
    plane = [row for row in rows if row["size"] == size]
    best = best_temperatures(plane)
    sweep = [row for row in rows if row["alpha"] == alpha]
    critical = crossovers(sweep)
    states = [row["status"] for row in rows]
    return Findings(
        size,
        alpha,
        best,
        fit_best(best),
        critical,
        fit_critical(critical),
        {state: states.count(state) for state in ("fitted", "unfitted", "diverged")},
        kernel_regime(sweep),
        gains(plane),
        ways_out(plane),
    )


def write_report(
    folder: Path, name: str, rows: Sequence[Row], findings: Findings
) -> None:
    """Write ``findings.json``, the heat maps and the weight change against T.

    Args:
        folder: Where to write.
        name: Of the study, for headings.
        rows: Of one optimizer.
        findings: Of the rows.
    """
    # The lock of the cells: the folder itself holds only what is to be read.
    with alone(folder.parent / "lock"):
        write_json(folder / "findings.json", dataclasses.asdict(findings))
        _plot(folder, name, rows, findings)


def _plot(folder: Path, name: str, rows: Sequence[Row], findings: Findings) -> None:
    plane = [row for row in rows if row["size"] == findings.size]
    plot_plane(
        _by_cell(plane),
        QUANTITIES,
        [(best.alpha, best.temperature) for best in findings.best],
        rf"{name}, P = {findings.size}   "
        r"($\times$ diverged, … not fitted, ring: $T_{opt}$)",
        [folder / f"plane.{suffix}" for suffix in ("png", "svg")],
    )
    sweep = [row for row in rows if row["alpha"] == findings.alpha]
    plot_weight_change(
        change_curves(sweep, "size", "P = "),
        critical_by(findings.critical, "size", "P = "),
        rf"{name}, $\alpha$ = {findings.alpha:g}",
        [folder / f"critical.{suffix}" for suffix in ("png", "svg")],
    )
    if findings.kernel is not None:
        _plot_kernel(folder, name, sweep, findings.kernel)


def _plot_kernel(
    folder: Path, name: str, rows: Sequence[Row], found: KernelRegime
) -> None:
    sizes = sorted({row["size"] for row in rows})
    means = {
        "weight_change": statistics.geometric_mean,
        "time": statistics.geometric_mean,
        "test_error": statistics.fmean,
    }
    plot_kernel_regime(
        {
            quantity: {
                f"P = {size}": list(mean_curve(rows, size, quantity, mean).items())
                for size in sizes
            }
            for quantity, mean in means.items()
        },
        (found.temperatures[0], found.temperatures[-1]),
        LEVELS,
        {f"P = {size}": t for size, t in found.plateau_temperatures.items()},
        rf"{name}, $\alpha$ = {found.alpha:g}   "
        "(grey: T at which noise decides, dotted: levels of $T_c$)",
        [folder / f"kernel_regime.{suffix}" for suffix in ("png", "svg")],
    )


def change_curves(
    rows: Sequence[Row], field: str, prefix: str = ""
) -> dict[str, list[tuple[float, float]]]:
    """Average the weight change over seeds, where all of them were fitted.

    Args:
        rows: Of one α.
        field: What tells the curves apart.
        prefix: Of the curves' names.

    Returns:
        T and geometric mean, by name.
    """
    result: dict[str, list[tuple[float, float]]] = {}
    for value in dict.fromkeys(row[field] for row in rows):
        by_temperature: dict[float, list[Row]] = {}
        for row in (row for row in rows if row[field] == value):
            by_temperature.setdefault(row["temperature"], []).append(row)
        result[f"{prefix}{value}"] = [
            (t, statistics.geometric_mean(row["weight_change"] for row in seeds))
            for t, seeds in sorted(by_temperature.items())
            if all(row["status"] == "fitted" for row in seeds)
        ]
    return result


def critical_by(
    found: Sequence[Crossover], field: str, prefix: str = ""
) -> dict[str, list[float]]:
    """Collect the T_c that were found.

    Args:
        found: Of one α.
        field: What tells the curves apart.
        prefix: Of the curves' names.

    Returns:
        T_c of the seeds, by name.
    """
    result: dict[str, list[float]] = {}
    for crossover in found:
        name = f"{prefix}{getattr(crossover, field)}"
        if crossover.temperature is not None:
            result.setdefault(name, []).append(crossover.temperature)
    return result


def _by_cell(rows: Sequence[Row]) -> Mapping[tuple[float, float], PlaneCell]:
    seeds: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        seeds.setdefault((row["alpha"], row["temperature"]), []).append(row)
    return {key: _mean(seeds[key]) for key in seeds}


def _mean(seeds: Sequence[Row]) -> PlaneCell:
    states = {row["status"] for row in seeds}
    # A mean over the seeds that were lucky would flatter the cell.
    if states != {"fitted"}:
        return PlaneCell({}, "diverged" if "diverged" in states else "unfitted")
    return PlaneCell(
        {name: statistics.fmean(row[name] for row in seeds) for name in QUANTITIES}, ""
    )


def report_folder(folder: Path, rows: Sequence[Row]) -> Path:
    """Create the folder of a report, named after the cells that it is about.

    Args:
        folder: Of the cells.
        rows: Of the report.

    Returns:
        The folder, the same for the same cells.
    """
    cells = sorted(
        (row["optimizer"], row["size"], row["alpha"], row["temperature"], row["seed"])
        for row in rows
    )
    digest = hashlib.sha256(repr(cells).encode()).hexdigest()[:8]
    result = folder / f"{rows[0]['optimizer']}-{digest}"
    result.mkdir(exist_ok=True)
    return result
