"""What ``saiopt noise perceptron`` prints."""

from collections.abc import Sequence

from saiopt.lab.noise.perceptron_exponents import Fit
from saiopt.lab.table import TextTable, text_columns

_SYMBOLS = {"norm": "‖w‖", "time": "t*", "size": "P", "temperature": "T"}


def exponent_table(fits: Sequence[Fit]) -> TextTable:
    """Lay out one exponent per row.

    Args:
        fits: From :func:`saiopt.lab.noise.perceptron_exponents.fit_all`.

    Returns:
        A table that fits 80 columns.
    """
    rows: list[tuple[str, ...]] = []
    previous = None
    for fit in fits:
        if fit.measured is None:
            continue
        row = (
            "" if fit.chi == previous else f"{fit.chi:g}",
            f"{_SYMBOLS[fit.quantity]} in {_SYMBOLS[fit.against]}",
            str(fit.measured),
            "" if fit.late is None else str(fit.late),
            f"{fit.local[-1][2]:.2f}" if fit.against == "size" else "",
            f"{fit.theory:.2f}",
            str(fit.measured.count),
        )
        rows.append(row)
        previous = fit.chi
    numbers = ("measured", "last 4 P", "last 2 P", "theory", "n")
    return TextTable(text_columns("χ", "exponent of", *numbers, numbers=numbers), rows)


def unfitted_text(fits: Sequence[Fit], max_events: int) -> str:
    """Say which cells ran out of events.

    Args:
        fits: All.
        max_events: The budget.

    Returns:
        A sentence, empty if there are none.
    """
    parts = [
        f"{fit.unfitted} at χ = {fit.chi:g} in the sweep of {_SYMBOLS[fit.against]}"
        for fit in fits
        if fit.unfitted and fit.quantity == "norm"
    ]
    if not parts:
        return ""
    return (
        f"Not fitted after {max_events:,} events and left out of the fits: "
        + "; ".join(parts)
        + "."
    )
