"""Settings of optimizers, given as text."""

from collections.abc import Mapping
from typing import Any

from saiopt.choices import must_be_known
from saiopt.lab.optimizers.registry import get_optimizer

_WORDS = {"true": True, "false": False, "none": None}


def read_settings(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read what a user sets of optimizers.

    Args:
        texts: Text by ``optimizer.setting``; numbers of a tuple stand between commas.

    Returns:
        Value by optimizer and setting.

    Raises:
        ValueError: If an optimizer or a setting is unknown, or a value not of its kind.

    >>> read_settings({"adamw.betas": "0.9,0.99", "sgd.momentum": "0.95"})
    {'adamw': {'betas': (0.9, 0.99)}, 'sgd': {'momentum': 0.95}}
    """
    found: dict[str, dict[str, Any]] = {}
    for key, text in texts.items():
        optimizer, _, name = key.rpartition(".")
        if not optimizer:
            raise ValueError(
                f"setting must be given as optimizer.name=value, got {key}={text}"
            )
        known = get_optimizer(optimizer).settings
        if name not in known:
            raise ValueError(must_be_known(f"setting of {optimizer}", name, known))
        found.setdefault(optimizer, {})[name] = _value(key, text, known[name])
    return found


def _value(key: str, text: str, usual: object) -> Any:  # noqa: ANN401 - any setting
    """Read a value of the kind of the usual one."""
    try:
        if isinstance(usual, tuple):
            values = tuple(float(part) for part in text.split(","))
            if len(values) == len(usual):
                return values
        elif isinstance(usual, bool):
            return {"true": True, "false": False}[text]
        elif isinstance(usual, (int, float)):
            return type(usual)(text) if _is_whole(text) else float(text)
        elif isinstance(usual, str):
            return text
        else:
            return _WORDS[text] if text in _WORDS else _number_or_text(text)
    except (KeyError, ValueError):
        pass
    raise ValueError(f"setting {key} must be like {_like(usual)}, got {text}")


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _like(usual: object) -> str:
    if isinstance(usual, tuple):
        return ",".join(map(str, usual))
    return str(usual).lower() if isinstance(usual, bool) else str(usual)
