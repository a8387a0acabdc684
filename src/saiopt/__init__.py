"""SGD-SaI: momentum SGD with learning rates scaled at initialisation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

    __version__: str

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
# They are loaded when they are asked for: a command answers a question about itself,
# and an interruption, before torch is there.
_ROOMS = ("analysis", "lab", "memory", "optimizer", "scaling")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has the name
    if name in _ROOMS:
        return importlib.import_module(f"saiopt.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("saiopt")
    if name in __all__:
        room = "scaling" if name in {"Moments", "Scales"} else "optimizer"
        return getattr(importlib.import_module(f"saiopt.{room}"), name)
    raise AttributeError(f"module 'saiopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_ROOMS, "__version__"])
