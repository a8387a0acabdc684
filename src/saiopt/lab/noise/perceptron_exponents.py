"""The perceptron's exponents, measured and as theory has them."""

import dataclasses
from collections.abc import Sequence

from saiopt.lab.noise.cells import middle
from saiopt.lab.noise.power_law import Exponent, fit_exponent, local_slopes
from saiopt.lab.studies.ledger import Row

QUANTITIES = ("norm", "time")
_LAST = 4


@dataclasses.dataclass(frozen=True)
class Fit:
    """One exponent.

    Args:
        chi: χ of the points.
        quantity: ``norm`` or ``time``.
        against: ``size`` or ``temperature``.
        measured: Over all values; None where there are fewer than two.
        late: Over the last four sizes; None of a temperature or of fewer sizes.
        theory: The limit for many points.
        local: Lower and upper value and slope between neighbours.
        unfitted: Cells that were left out because ``max_events`` ran out.
    """

    chi: float
    quantity: str
    against: str
    measured: Exponent | None
    late: Exponent | None
    theory: float
    local: list[tuple[float, float, float]]
    unfitted: int


def theory(chi: float, quantity: str, against: str) -> float:
    """Return the limit: norm ~ T P^(1/(1+χ)), t* ~ T P^(1+2/(1+χ)).

    Args:
        chi: χ.
        quantity: ``norm`` or ``time``.
        against: ``size`` or ``temperature``.

    Returns:
        The exponent.

    References:
        Sclocchi, Geiger and Wyart (2023), arXiv 2301.13703.
    """
    if against == "temperature":
        return 1.0
    return 1 / (1 + chi) if quantity == "norm" else 1 + 2 / (1 + chi)


def fit_all(rows: Sequence[Row]) -> list[Fit]:
    """Fit norm and time against size and temperature for every χ.

    Args:
        rows: Of a crossed plan, see :func:`saiopt.lab.noise.perceptron.plan`.

    Returns:
        Four fits per χ.
    """
    fixed = {
        "size": ("temperature", middle([row["temperature"] for row in rows])),
        "temperature": ("size", middle([row["size"] for row in rows])),
    }
    return [
        _fit(chi, quantity, against, _select(rows, chi, *fixed[against]))
        for chi in sorted({row["chi"] for row in rows})
        for against in fixed
        for quantity in QUANTITIES
    ]


def _select(rows: Sequence[Row], chi: float, name: str, value: float) -> list[Row]:
    return [row for row in rows if row["chi"] == chi and row[name] == value]


def _fit(chi: float, quantity: str, against: str, rows: Sequence[Row]) -> Fit:
    fitted = [row for row in rows if row["fitted"]]
    x = [float(row[against]) for row in fitted]
    y = [float(row[quantity]) for row in fitted]
    last = sorted(set(x))[-_LAST:]
    late = [(a, b) for a, b in zip(x, y, strict=True) if a in last]
    is_long = against == "size" and len(set(x)) > _LAST
    return Fit(
        chi,
        quantity,
        against,
        fit_exponent(x, y) if len(set(x)) > 1 else None,
        fit_exponent(*zip(*late, strict=True)) if is_long else None,
        theory(chi, quantity, against),
        local_slopes(x, y),
        len(rows) - len(fitted),
    )
