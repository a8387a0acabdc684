"""A table: what it says, apart from where it is shown."""

import dataclasses
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable


@dataclasses.dataclass(frozen=True)
class Column:
    """One column.

    Args:
        heading: May hold a newline, where a narrow one breaks.
        text: Writes what a row says in it.
        is_number: Whether it is aligned to the right.
        wraps: Whether its text may be broken where there is little room.
    """

    heading: str
    text: Callable[[Any], str]
    is_number: bool = False
    wraps: bool = False

    @property
    def title(self) -> str:
        """The heading in one line."""
        return " ".join(self.heading.split())


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Rows, how they are written, and what is to be said of them.

    Args:
        columns: The first one names a row.
        rows: As JSON has them: mappings of JSON types, or texts.
        best: Row that is better than all others.
        notes: What its signs mean.
        warnings: Why not to trust it yet.
    """

    columns: Sequence[Column]
    rows: Sequence[Any]
    best: int | None = None
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def texts(self) -> list[list[str]]:
        """Every cell as it is read."""
        return [[column.text(row) for column in self.columns] for row in self.rows]

    def for_terminal(self) -> "TerminalTable":
        """Lay the table out, its best row in bold.

        Returns:
            What rich prints.
        """
        from rich.table import Table as TerminalTable

        laid_out = TerminalTable(box=None, pad_edge=False, header_style="dim")
        height = max(column.heading.count("\n") for column in self.columns)
        for column in self.columns:
            missing = height - column.heading.count("\n")
            laid_out.add_column(
                "\n" * missing + column.heading,
                justify="right" if column.is_number else "left",
                no_wrap=not column.wraps,
            )
        for index, cells in enumerate(self.texts):
            laid_out.add_row(*cells, style="bold" if index == self.best else None)
        return laid_out


def text_columns(
    *headings: str, numbers: Sequence[str] = (), wrapping: Sequence[str] = ()
) -> list[Column]:
    """Return the columns of rows that are texts already.

    Args:
        headings: One per text.
        numbers: Those that are aligned to the right.
        wrapping: Those that may be broken.

    Returns:
        The columns.
    """
    return [
        Column(heading, itemgetter(index), heading in numbers, heading in wrapping)
        for index, heading in enumerate(headings)
    ]
