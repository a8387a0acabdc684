"""SGD-SaI: momentum SGD with learning rates scaled at initialisation."""

from .moments import Moments
from .named_scales import get_scales, set_scales
from .optimizer import SGDSaI
from .param_groups import decay_groups
from .release import step_in_backward

__all__ = [
    "Moments",
    "SGDSaI",
    "decay_groups",
    "get_scales",
    "set_scales",
    "step_in_backward",
]
