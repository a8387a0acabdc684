"""What of a user's code a run depends on."""

import functools
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from saiopt.lab.identity import executed, identity_hash, is_written_here

_CONSTANTS = (int, float, str, bytes, bool, type(None))


def own_code(objects: Iterable[object]) -> str:
    """Hash the code behind some objects.

    Of a file counts all of it, and what it imports from its folder and below. What was
    typed into a notebook counts with all functions, classes and constants that it
    names. What is installed does not count: packages have versions.

    Args:
        objects: Functions, classes, and objects that are made of them.

    Returns:
        Eight hexadecimal digits.
    """
    known = list(objects)
    modules = {_module(thing) for thing in known}
    files = sorted(name for name in modules if is_written_here(name))
    typed = _typed(thing for thing in known if _module(thing) not in files)
    return identity_hash([executed(files), dict(sorted(typed.items()))])


def _module(thing: object) -> str:
    if isinstance(thing, functools.partial):
        return _module(thing.func)
    own = getattr(thing, "__module__", None)
    return own if isinstance(own, str) else type(thing).__module__


def _typed(objects: Iterable[object]) -> dict[str, Any]:
    """Describe what has no file, and everything typed that it names."""
    found: dict[str, Any] = {}
    waiting = [("", thing) for thing in objects]
    while waiting:
        name, thing = waiting.pop()
        key = getattr(thing, "__qualname__", name or type(thing).__qualname__)
        if key in found:
            continue
        if isinstance(thing, functools.partial):
            found[key] = repr(
                [_value(v) for v in (*thing.args, *thing.keywords.items())]
            )
            waiting.append(("", thing.func))
        elif isinstance(thing, FunctionType):
            found[key] = _form(thing)
            waiting += _named(thing)
        elif isinstance(thing, type):
            if not _has_file(thing):
                found[key] = {
                    n: _value(v) for n, v in vars(thing).items() if n[:2] != "__"
                }
                waiting += [("", v) for v in vars(thing).values() if callable(v)]
                waiting += [("", base) for base in thing.__bases__]
        elif isinstance(thing, _CONSTANTS):
            found[key] = repr(thing)
        else:
            found[key] = {n: _value(v) for n, v in sorted(_state(thing).items())}
            waiting.append(("", type(thing)))
    return found


def _has_file(thing: object) -> bool:
    module = sys.modules.get(_module(thing))
    return getattr(module, "__file__", None) is not None or _module(thing) == "builtins"


def _state(thing: object) -> dict[str, Any]:
    return {n: v for n, v in getattr(thing, "__dict__", {}).items() if n[:1] != "_"}


def _value(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return [_value(item) for item in value]
    return repr(value) if isinstance(value, _CONSTANTS) else type(value).__qualname__


def _form(function: FunctionType) -> list[object]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [
        *_instructions(function.__code__),
        _value(function.__defaults__),
        _value(cells),
    ]


def _instructions(code: CodeType) -> Iterator[object]:
    """Yield what a function does, and nothing of how it is written."""
    yield code.co_code.hex()
    yield list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield list(_instructions(constant))
        else:
            yield _value(constant)


def _named(function: FunctionType) -> list[tuple[str, object]]:
    """Return the typed globals that a function names, and what it encloses."""
    known = function.__globals__
    found = [(name, known[name]) for name in _names(function.__code__) if name in known]
    enclosed = [cell.cell_contents for cell in function.__closure__ or ()]
    found += [("", thing) for thing in enclosed if callable(thing)]
    return [(n, v) for n, v in found if isinstance(v, _CONSTANTS) or not _has_file(v)]


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*(_names(each) for each in inner))
