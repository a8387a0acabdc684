"""The optimizer: its arguments, its state, how blocks begin, and the step."""

from .gradient_release import step_in_backward
from .named_scales import get_scales, set_scales
from .param_groups import decay_groups, split_by_decay
from .sgdsai import SGDSaI

__all__ = [
    "SGDSaI",
    "decay_groups",
    "get_scales",
    "set_scales",
    "split_by_decay",
    "step_in_backward",
]
