"""What ``saiopt noise perceptron`` prints."""

from collections.abc import Sequence

from rich.table import Table

from saiopt.lab.noise.perceptron_exponents import Fit

_SYMBOLS = {"norm": "‖w‖", "time": "t*", "size": "P", "temperature": "T"}


def exponent_table(fits: Sequence[Fit]) -> Table:
    """Lay out one exponent per row.

    Args:
        fits: From :func:`saiopt.lab.noise.perceptron_exponents.fit_all`.

    Returns:
        A table that fits 80 columns.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("χ")
    table.add_column("exponent of", no_wrap=True)
    for column in ("measured", "last 4 P", "last 2 P", "theory", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for fit in fits:
        if fit.measured is None:
            continue
        table.add_row(
            "" if fit.chi == previous else f"{fit.chi:g}",
            f"{_SYMBOLS[fit.quantity]} in {_SYMBOLS[fit.against]}",
            str(fit.measured),
            "" if fit.late is None else str(fit.late),
            f"{fit.local[-1][2]:.2f}" if fit.against == "size" else "",
            f"{fit.theory:.2f}",
            str(fit.measured.count),
        )
        previous = fit.chi
    return table


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
