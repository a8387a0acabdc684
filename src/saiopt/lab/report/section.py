"""What the page is made of."""

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from saiopt.lab.table import TextTable


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing, which the page holds itself.

    Args:
        label: What a screen reader says.
        address: The file as a data URL.
        width: Its own, in CSS pixels, which is the largest.
        least_width: Below it the picture scrolls, since its letters get small.
    """

    label: str
    address: str
    width: int
    least_width: int


@dataclasses.dataclass(frozen=True)
class Section:
    """One heading and what is below it.

    Args:
        heading: Of the section.
        pictures: Come first.
        tables: With their notes and warnings.
        more: A summary of what is folded away, its pictures and its tables.
        facts: What it was made of, when, and where it lies.
    """

    heading: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[TextTable] = ()
    more: tuple[str, Sequence[Picture], Sequence[TextTable]] | None = None
    facts: str = ""


# Pixels per point at which a letter of 8.5 points can still be read.
_LEAST_SCALE = 0.9


def pictures(*wanted: tuple[Path, str]) -> list[Picture]:
    """Read SVG files.

    Args:
        wanted: Files, of which some may be missing, and what a screen reader says.

    Returns:
        Those that are there.
    """
    return [_picture(path, label) for path, label in wanted if path.exists()]


def _picture(path: Path, label: str) -> Picture:
    data = path.read_bytes()
    width = re.search(rb'<svg [^>]*?width="([\d.]+)pt"', data)
    points = float(width.group(1)) if width else 500.0
    address = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    least = round(points * _LEAST_SCALE)
    return Picture(label, address, round(points * 4 / 3), least)
