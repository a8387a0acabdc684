"""What ``saiopt noise phase`` prints."""

import statistics
from collections.abc import Sequence

from saiopt.lab.comparison.intervals import Estimate
from saiopt.lab.noise.critical import Crossover
from saiopt.lab.noise.gains import WayOut
from saiopt.lab.noise.kernel_regime import KernelRegime
from saiopt.lab.noise.phase_report import Findings
from saiopt.lab.table import TextTable, text_columns

_GAMMA = "γ"  # noqa: RUF001 - the paper's symbol


def phase_table(findings: Findings) -> TextTable:
    """Lay out T_opt for every α, then T_c for every P.

    Args:
        findings: Of one optimizer.

    Returns:
        A table that fits 80 columns.
    """
    rows: list[tuple[str, str, str]] = []
    gains = {gain.alpha: gain for gain in findings.gains}
    for best in findings.best:
        note = f"test error {best.test_error:.3f}"
        note += ", at the border" if best.at_border else ""
        if best.alpha in gains:
            note += f"; noise gains {_interval(gains[best.alpha].gain)}"
            if gains[best.alpha].harm.mean > 0:
                note += f", costs {_interval(gains[best.alpha].harm)} at worst"
        alpha = f"α = {best.alpha:g}"  # noqa: RUF001 - the paper's symbol
        rows.append((alpha, f"T_opt {best.temperature:.3g}", note))
    for size in sorted({crossover.size for crossover in findings.critical}):
        seeds = [c for c in findings.critical if c.size == size]
        rows.append((f"P = {size}", *_critical_cells(seeds)))
    columns = text_columns("at", "temperature", "note", wrapping=["note"])
    return TextTable(columns, rows)


def _interval(value: Estimate) -> str:
    return f"{value.mean:.3f} ± {value.half_width:.3f}"


def _critical_cells(seeds: Sequence[Crossover]) -> tuple[str, str]:
    found = [c.temperature for c in seeds if c.temperature is not None]
    count = f"n={len(found)} of {len(seeds)}"
    if not found:
        return "T_c beyond the grid", count
    note = f"{min(found):.2g} to {max(found):.2g} ({count})"
    return f"T_c {statistics.geometric_mean(found):.3g}", note


def kernel_table(found: KernelRegime) -> TextTable:
    """Lay out the exponents of the kernel regime.

    Args:
        found: The exponents.

    Returns:
        A table that fits 80 columns.
    """
    found_by: list[tuple[str, str, Estimate | None]] = [
        ("δ", f"weight change ~ T^δ P^{_GAMMA}", found.delta),
        (_GAMMA, "", found.gamma),
        ("1 in theory", "t* ~ T^1 P^b", found.time_in_temperature),
        ("b", "", found.b),
        ("a", f"T_c ~ P^-a, as {_GAMMA}/δ", found.ratio),
        *(
            ("a", f"T_c where the change is {level:g}", a)
            for level, a in found.levels.items()
        ),
        ("a", "T_c where the test error leaves its plateau", found.plateau),
    ]
    rows = [
        (name, what, "not in the grid" if value is None else _text(value))
        for name, what, value in found_by
    ]
    return TextTable(text_columns("exponent", "of", "mean ± 95 % (n seeds)"), rows)


def kernel_text(found: KernelRegime) -> str:
    """Say where the exponents of the kernel regime come from.

    Args:
        found: The exponents.

    Returns:
        A sentence.
    """
    low, high = found.temperatures[0], found.temperatures[-1]
    return (
        f"At alpha = {found.alpha:g}, from the {len(found.temperatures)} T between "
        f"{low:.2g} and {high:.2g} where noise decides how far the weights go."
    )


def _text(value: Estimate) -> str:
    spread = "" if value.half_width is None else f" ± {value.half_width:.2f}"
    return f"{value.mean:.2f}{spread} ({value.count})"


def ways_text(ways: tuple[WayOut, WayOut]) -> str:
    """Say where the two ways out of the kernel regime lead.

    Args:
        ways: The warmer one, and that of smaller α.

    Returns:
        Sentences.
    """
    warmer, smaller = ways
    return (
        f"Out of the kernel regime (n={warmer.gain.count} seeds): raising T to "
        f"{warmer.temperature:.2g} {_effect(warmer.gain)}, lowering alpha to "
        f"{smaller.alpha:g} {_effect(smaller.gain)}."
    )


def _effect(gain: Estimate) -> str:
    width = gain.half_width or 0.0
    text = f"{abs(gain.mean):.3f} ± {width:.3f}"
    if abs(gain.mean) <= width:
        return f"changes the test error by {-gain.mean:+.3f} ± {width:.3f} (open)"
    return f"{'lowers' if gain.mean > 0 else 'raises'} the test error by {text}"


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
        return "T_c by twice the smallest change was found at fewer than two P."
    sizes = sorted({c.size for c in findings.critical if c.temperature is not None})
    return (
        "T_c by twice the change at the smallest T, a definition of our own, ~ P^k at "
        f"alpha = {findings.alpha:g}: k = {fit} (n={fit.count}, P from "
        f"{sizes[0]} to {sizes[-1]}). The interval is the seeds' scatter; P is too "
        "small to tell this from a bend."
    )
