"""What the report says about a measurement of g-SNR."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saiopt.lab.report.markup import details, note, picture, table
from saiopt.lab.report.sources import Source


def gsnr_section(source: Source, prefix: str) -> str:
    """Report a measurement of g-SNR.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        HTML.
    """
    html = picture(source.folder / "gsnr.svg", "g-SNR/√n by step", prefix)
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in source.content:
        blocks.setdefault(row["block"], []).append(row)
    lines = [_row(block, rows) for block, rows in blocks.items()]
    columns = ("block", "n", "√n", "g-SNR", "at end", "/√n", "at end")
    html += details(f"All {len(lines)} blocks", table(columns, lines))
    return html + note(f"finished {source.finished}, {source.folder.name}")


def _row(block: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    first, last = rows[0], rows[-1]
    return (
        block,
        f"{first['numel']:,}",
        f"{math.sqrt(first['numel']):.1f}",
        *(_number(row["gsnr"], 1) for row in (first, last)),
        *(_number(row["ratio"], 3) for row in (first, last)),
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
