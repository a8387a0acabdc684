"""One rule, several executions: `reference` is the specification of all others."""

from .blocks import Block, Coefficients
from .choice import Execution, choose
from .reference import advance, decay
from .tiles import matrix_shape

__all__ = [
    "Block",
    "Coefficients",
    "Execution",
    "advance",
    "choose",
    "decay",
    "matrix_shape",
]
