"""Pieces of HTML."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

# Width in points of a picture with one panel.
_ONE_PANEL = 560


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None
) -> str:
    """Write a table that scrolls by itself where it is too wide.

    Args:
        columns: Headings; the first column is aligned to the left.
        rows: Text of each cell.
        best: Row to set in bold.

    Returns:
        HTML.
    """
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = ""
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        mark = " class='best'" if index == best else ""
        body += f"<tr{mark}>{cells}</tr>\n"
    return (
        "<div class='scroll'><table>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def details(summary: str, content: str) -> str:
    """Fold something away.

    Args:
        summary: What can always be seen.
        content: HTML.

    Returns:
        HTML.
    """
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


def note(text: str, kind: str = "note") -> str:
    """Write a paragraph.

    Args:
        text: Plain text.
        kind: Its class.

    Returns:
        HTML.
    """
    return f"<p class='{kind}'>{escape(text)}</p>\n"


def picture(path: Path, label: str, prefix: str) -> str:
    """Put an SVG file into the page.

    Args:
        path: The file; nothing is written where it is missing.
        label: What a screen reader says.
        prefix: Makes the picture's ids different from those of other pictures.

    Returns:
        HTML.
    """
    if not path.exists():
        return ""
    text = path.read_text("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    # The page's width decides, and the picture's own is the largest.
    width = re.search(r'<svg [^>]*?width="([\d.]+)pt"', text)
    points = float(width.group(1)) if width else 500.0
    text = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[\d.]+pt"', r"\1", text, count=1)
    style = f"max-width:{points * 4 / 3:.0f}px;min-width:{_least_width(points)}px"
    text = text.replace(
        "<svg ", f"<svg role='img' aria-label='{escape(label)}' style='{style}' ", 1
    )
    return f"<figure class='scroll'>\n{text}</figure>\n"


def _least_width(points: float) -> int:
    """Return the width below which a picture scrolls, since its letters get small."""
    return min(round(points), _ONE_PANEL) * 10 // 11
