"""One rule, several executions: `reference` is the specification of all others."""

from .along import turn_into_directions, with_direction
from .blocks import Block, Coefficients, Direction
from .choice import Execution, Table, choose, warn_of_slow_codes
from .reference import advance, arithmetic_dtype, decay

__all__ = [
    "Block",
    "Coefficients",
    "Direction",
    "Execution",
    "Table",
    "advance",
    "arithmetic_dtype",
    "choose",
    "decay",
    "turn_into_directions",
    "warn_of_slow_codes",
    "with_direction",
]
