"""The optimizers that a recipe can be trained with, by name."""

from .modes import set_mode
from .registry import OPTIMIZERS, build_optimizer, get_optimizer, variants
from .spec import OptimizerSpec
from .state_size import state_bytes

__all__ = [
    "OPTIMIZERS",
    "OptimizerSpec",
    "build_optimizer",
    "get_optimizer",
    "set_mode",
    "state_bytes",
    "variants",
]
