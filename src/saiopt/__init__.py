"""SGD-SaI: momentum SGD with learning rates scaled at initialisation."""

from .optimizer import (
    SGDSaI,
    decay_groups,
    get_scales,
    orthogonal_groups,
    parameter_roles,
    set_scales,
    step_in_backward,
)
from .scaling import Moments, Scales

__all__ = [
    "Moments",
    "SGDSaI",
    "Scales",
    "decay_groups",
    "get_scales",
    "orthogonal_groups",
    "parameter_roles",
    "set_scales",
    "step_in_backward",
]
