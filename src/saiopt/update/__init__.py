"""One rule, several executions: `reference` is the specification of all others."""

from .blocks import Block, Coefficients
from .choice import Execution, Table, choose, warn_of_slow_codes
from .reference import advance, decay

__all__ = [
    "Block",
    "Coefficients",
    "Execution",
    "Table",
    "advance",
    "choose",
    "decay",
    "warn_of_slow_codes",
]
