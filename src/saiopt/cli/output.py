"""Where commands print."""

import codecs
import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as TerminalTable
    from rich.text import Text

    from saiopt.lab.table import TextTable

# What a terminal or a log gets that cannot show a character.
_PLAIN = {
    "±": "+-",
    "·": "*",
    "•": "*",
    "√": "sqrt ",
    "\N{MULTIPLICATION SIGN}": "x",
    "…": "...",
    "\N{EN DASH}": "-",
    "—": "-",
    "\N{GREEK SMALL LETTER ALPHA}": "alpha",
    "β": "beta",
    "χ": "chi",
    "η": "eta",
    "λ": "lambda",
    "╸": "-",
    "╺": "-",
    "━": "-",
}
_HANDLER = "saiopt_plain"
# Characters of a line of text that can be read.
_WRAPPED = 24


def open_streams() -> None:
    """Let everything that is printed reach a reader, or nobody, without an error.

    A stream that is not UTF-8 gets the nearest characters that it has. One that was
    closed before the start swallows what it gets.
    """
    codecs.register_error(_HANDLER, _in_plain_characters)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - to the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)  # pyright: ignore[reportAttributeAccessIssue]


def forget_stdout() -> None:
    """Send to nobody what is still to be printed, since its reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def new_console(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """Open a console for tables and progress.

    Args:
        stderr: Whether it prints there, so that stdout is JSON only.
        quiet: Whether it prints nothing.

    Returns:
        The console, which raises ``BrokenPipeError`` where its reader has gone.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Plain(stderr=stderr, quiet=quiet, highlight=False)


def print_tables(console: "Console", *tables: "TextTable") -> None:
    """Print tables with a line between them, then what is to be said of them.

    Args:
        console: Where to print.
        tables: At least one.
    """
    for index, table in enumerate(tables):
        if index:
            console.print()
        print_item(console, table.for_terminal())
    for text in (text for table in tables for text in table.notes):
        console.print(f"\n{text}", style="dim")
    for text in (text for table in tables for text in table.warnings):
        console.print(f"\n{text}", style="yellow")


def print_item(console: "Console", item: "TerminalTable | Text") -> None:
    """Print text, or a table, its rows as lines where it has no room: none is cut.

    Args:
        console: Where to print.
        item: Columns that are not aligned to the right may be wrapped, unless they
            forbid it.
    """
    from rich.table import Table as TerminalTable

    if isinstance(item, TerminalTable):
        _print_table(console, item)
    else:
        console.print(item)


def _print_table(console: "Console", table: "TerminalTable") -> None:
    _, right, _, left = table.padding
    gaps = (len(table.columns) - 1) * (left + right)
    if sum(map(_least_width, table.columns)) + gaps <= console.width:
        console.print(table)
        return
    first, *others = table.columns
    console.print(str(first.header).strip(), style="dim")
    cells = zip(*(column.cells for column in others), strict=True)
    for row, name, values in zip(table.rows, first.cells, cells, strict=True):
        console.print(name, style=row.style)
        console.print(_lines([column.header for column in others], values))


def _least_width(column: "Column") -> int:
    """Return the characters below which a column would be cut or hard to read."""
    texts = [str(text) for text in (column.header, *column.cells)]
    width = max(len(line) for text in texts for line in text.split("\n"))
    is_fixed = column.no_wrap or column.justify == "right"
    return width if is_fixed else min(width, _WRAPPED)


def _lines(names: Sequence[object], values: Sequence[object]) -> "TerminalTable":
    from rich.table import Table as TerminalTable

    lines = TerminalTable.grid(padding=(0, 1))
    lines.add_column(width=1)
    lines.add_column(style="dim")
    lines.add_column()
    for name, value in zip(names, values, strict=True):
        if str(value):
            lines.add_row("", " ".join(str(name).split()), str(value))
    return lines


def print_json(value: object) -> None:
    """Print JSON and nothing else.

    Args:
        value: JSON types.
    """
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_plain, missing)), error.end


def _plain(character: str) -> str:
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _PLAIN.get(character) or bare or "?"
