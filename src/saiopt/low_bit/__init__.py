"""Momentum in 16, 8 and 4 bits: rounding, noise, and codes with a scale per group."""

from .codes import (
    SHIPPED,
    Code,
    buffer_shape,
    code_of,
    dequantize,
    quantize,
    scale_shape,
    using,
)
from .rounding import (
    dither_bits,
    high_half,
    low_half,
    noise_bits,
    round_stochastically,
)

__all__ = [
    "SHIPPED",
    "Code",
    "buffer_shape",
    "code_of",
    "dequantize",
    "dither_bits",
    "high_half",
    "low_half",
    "noise_bits",
    "quantize",
    "round_stochastically",
    "scale_shape",
    "using",
]
