"""From a block's gradients to the factors on its learning rate."""

from .gsnr import gsnr
from .moments import Moments, measure
from .names import RULES, Scaling, rule_of, scales
from .rule import Axis, Measurement, Rule, Scales, Sums, matrix_shape
from .sums import sums_of

__all__ = [
    "RULES",
    "Axis",
    "Measurement",
    "Moments",
    "Rule",
    "Scales",
    "Scaling",
    "Sums",
    "gsnr",
    "matrix_shape",
    "measure",
    "rule_of",
    "scales",
    "sums_of",
]
