"""Bytes of weights, gradients and optimizer state, before anything is allocated."""

from .caching_allocator import Footprint
from .estimation import Estimate, estimate
from .state_allocation import OptimizerError

__all__ = ["Estimate", "Footprint", "OptimizerError", "estimate"]
