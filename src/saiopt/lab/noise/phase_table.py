"""What ``saiopt noise phase`` prints."""

import statistics
from collections.abc import Sequence

from rich.table import Table

from saiopt.lab.noise.critical import Crossover
from saiopt.lab.noise.phase_report import Findings


def phase_table(findings: Findings) -> Table:
    """Lay out T_opt for every α, then T_c for every P.

    Args:
        findings: Of one optimizer.

    Returns:
        A table that fits 80 columns.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("at", no_wrap=True)
    table.add_column("temperature", no_wrap=True)
    table.add_column("note")
    for best in findings.best:
        note = f"test error {best.test_error:.3f}"
        note += ", at the border" if best.at_border else ""
        table.add_row(
            f"α = {best.alpha:g}",  # noqa: RUF001 - the paper's symbol
            f"T_opt {best.temperature:.3g}",
            note,
        )
    for size in sorted({crossover.size for crossover in findings.critical}):
        seeds = [c for c in findings.critical if c.size == size]
        table.add_row(f"P = {size}", *_critical_cells(seeds))
    return table


def _critical_cells(seeds: Sequence[Crossover]) -> tuple[str, str]:
    found = [c.temperature for c in seeds if c.temperature is not None]
    count = f"n={len(found)} of {len(seeds)}"
    if not found:
        return "T_c beyond the grid", count
    note = f"{min(found):.2g} to {max(found):.2g} ({count})"
    return f"T_c {statistics.geometric_mean(found):.3g}", note


def lost_text(findings: Findings) -> str:
    """Say how many networks did not end fitted.

    Args:
        findings: Of one optimizer.

    Returns:
        A sentence.
    """
    counts = findings.counts
    return (
        f"{counts['fitted']} networks fitted, {counts['unfitted']} not fitted within "
        f"the budget, {counts['diverged']} diverged."
    )


def trust_text(findings: Findings, depth: int | None) -> str:
    """State the exponents and how far they can be trusted.

    Args:
        findings: Of one optimizer.
        depth: Hidden layers of a fully connected net; None for other architectures, of
            which there is no theory.

    Returns:
        Sentences.
    """
    return f"{_best_text(findings, depth)} {_critical_text(findings)}"


def _best_text(findings: Findings, depth: int | None) -> str:
    theory = _theory_text(depth)
    fit = findings.best_exponent
    if fit is None:
        return (
            "T_opt has too few values inside the grid at alpha < 1 for an exponent"
            + (f" ({theory})." if theory else ".")
        )
    bound = (
        "" if fit.half_width is not None else ", without an interval: it has two points"
    )
    return (
        f"T_opt ~ alpha^k over alpha < 1: k = {fit}{bound} (n={fit.count}"
        + (f"; {theory})" if theory else ")")
        + ". The grid of T is coarser than k is small: take it as a direction."
    )


def _theory_text(depth: int | None) -> str:
    if depth is None:
        return ""
    return f"theory for {depth} layers: {(depth - 1) / (depth + 1):.2f}"


def _critical_text(findings: Findings) -> str:
    fit = findings.critical_exponent
    if fit is None:
        return "T_c was found at fewer than two P: no exponent."
    sizes = sorted({c.size for c in findings.critical if c.temperature is not None})
    return (
        f"T_c ~ P^k at alpha = {findings.alpha:g}: k = {fit} (n={fit.count}, P from "
        f"{sizes[0]} to {sizes[-1]}). The interval is the seeds' scatter; P is too "
        "small to tell this from a bend."
    )
