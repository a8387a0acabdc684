"""The optimizer: its arguments, its state, how blocks begin, and the step."""

from .gradient_release import step_in_backward
from .named_scales import get_scales, set_scales
from .param_groups import decay_groups, orthogonal_groups, split_by_decay
from .roles import parameter_roles
from .sgdsai import SGDSaI

__all__ = [
    "SGDSaI",
    "decay_groups",
    "get_scales",
    "orthogonal_groups",
    "parameter_roles",
    "set_scales",
    "split_by_decay",
    "step_in_backward",
]
