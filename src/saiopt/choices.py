"""A name that must be one of those that are known."""

import difflib
from collections.abc import Iterable, Mapping


def must_be_known(argument: str, given: str, known: Iterable[str]) -> str:
    """Write why a name is refused, with the name that was probably meant.

    Args:
        argument: What was to be named.
        given: What was given.
        known: All that could be meant.

    Returns:
        Such as ``optimizer must be one of adamw, sgd, got adamv; did you mean adamw?``.

    >>> must_be_known("shape", "Circl", ["square", "circle"])
    'shape must be one of square, circle, got Circl; did you mean circle?'
    """
    names = list(known)
    return f"{argument} must be one of {', '.join(names)}, got {asking(given, names)}"


def require_known(argument: str, given: str, known: Mapping[str, object]) -> None:
    """See that a name is known.

    Args:
        argument: What was to be named.
        given: What was given.
        known: By name.

    Raises:
        ValueError: If it is not.
    """
    if given not in known:
        raise ValueError(must_be_known(argument, given, known))


def asking(given: str, known: Iterable[str]) -> str:
    """Write an unknown name, and the known one that it resembles, if one is near.

    Args:
        given: What was given.
        known: All that could be meant, whatever their capitals.

    Returns:
        Such as ``adamv; did you mean adamw?``.
    """
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(given.lower(), by_lower, n=1)
    return f"{given}; did you mean {by_lower[found[0]]}?" if found else given
