"""Sentences about a command line that cannot be read."""

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tyro.conf import Positional

from saiopt.choices import must_be_known

_KINDS: dict[object, str] = {float: "a number", int: "a whole number"}


def sentence(
    message: str, arguments: Sequence[str], commands: Mapping[str, type]
) -> str:
    """Say in one sentence why arguments are refused.

    Args:
        message: The parser's.
        arguments: Without the program's name.
        commands: Dataclasses by the words that choose them, such as ``"noise phase"``.

    Returns:
        The argument's name and its rule, as far as they can be found out.
    """
    words, command = _command(arguments, commands)
    if command is None:
        return _about_command(words, arguments, commands)
    options = _options(command)
    given = dict(_given(arguments))
    for option in given:
        if option not in options:
            return must_be_known("option", option, options)
    for option, values in given.items():
        fault = _fault(options[option], values)
        if fault is not None:
            return f"{_name(option)} must be {fault}"
    missing = re.search(r"Missing from [^:]*:\W+([A-Z]+)", message)
    if missing:
        name = missing.group(1).lower()
        return f"{name} must be given; see saiopt {words} --help"
    return _first_sentence(message)


def empty_option(command: object, arguments: Sequence[str]) -> str | None:
    """Find an option that was given without a value and would mean its default.

    Args:
        command: As it was parsed.
        arguments: Without the program's name.

    Returns:
        Why it is refused, None where there is no such option.
    """
    options = _options(type(command))
    for option, values in _given(arguments):
        if not values and option in options and _is_list(options[option]):
            return f"{_name(option)} must be given at least one value, got none"
    return None


def _command(
    arguments: Sequence[str], commands: Mapping[str, type]
) -> tuple[str, type | None]:
    for count in (2, 1):
        words = " ".join(arguments[:count])
        if words in commands:
            return words, commands[words]
    return " ".join(arguments[:1]), None


def _about_command(
    words: str, arguments: Sequence[str], commands: Mapping[str, type]
) -> str:
    below = [c.removeprefix(f"{words} ") for c in commands if c.startswith(f"{words} ")]
    if below and len(arguments) > 1:
        return must_be_known(words, arguments[1], below)
    known = below or dict.fromkeys(name.partition(" ")[0] for name in commands)
    if words and not below:
        return must_be_known("command", words, known)
    return f"{words or 'command'} must be one of {', '.join(known)}, got none"


def _options(command: type) -> dict[str, Any]:
    """Return the types of a command's options, by the words that name them."""
    hints = typing.get_type_hints(command)
    marked = typing.get_type_hints(command, include_extras=True)
    return {
        "--" + field.name.replace("_", "-"): hints[field.name]
        for field in dataclasses.fields(command)
        if Positional not in typing.get_args(marked[field.name])
    } | {"--help": bool}


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield options and the values behind them."""
    starts = [i for i, text in enumerate(arguments) if text.startswith("--")]
    for start, end in itertools.pairwise([*starts, len(arguments)]):
        name, equals, value = arguments[start].partition("=")
        yield (
            name.replace("_", "-"),
            [value] if equals else list(arguments[start + 1 : end]),
        )


def _name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _fault(kind: Any, values: Sequence[str]) -> str | None:  # noqa: ANN401 - a type
    """Write the rule that some values break, and the one that does."""
    is_list = _is_list(kind)
    kinds = [part for part in _parts(kind) if part is not types.NoneType]
    if kinds == [bool] or len(kinds) != 1:
        return None
    if not values:
        return "given a value, got none"
    (kind,) = kinds
    for value in values if is_list else values[:1]:
        if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            names = ", ".join(typing.get_args(kind))
            return f"one of {names}, got {value}"
        if kind in _KINDS and not _is_readable(kind, value):
            return f"{_KINDS[kind]}, got {value}"
    return None


def _is_list(kind: Any) -> bool:  # noqa: ANN401 - a type
    return typing.get_origin(kind) is tuple


def _parts(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type
    origin = typing.get_origin(kind)
    if origin is tuple:
        return typing.get_args(kind)[:1]
    is_union = origin in {typing.Union, types.UnionType}
    return typing.get_args(kind) if is_union else (kind,)


def _is_readable(kind: type, value: str) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _first_sentence(message: str) -> str:
    """Return the first sentence under the title of a message, framed or not."""
    paragraphs: list[list[str]] = [[]]
    for line in message.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or not text.strip("─-"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(text)
    filled = [paragraph for paragraph in paragraphs if paragraph]
    # A frame has the title in its border, plain text above a rule.
    body = filled[0] if "╭" in message else filled[1]
    return " ".join(body).partition(". ")[0]
