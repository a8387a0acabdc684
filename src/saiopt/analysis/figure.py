"""The look that all pictures share, and how they are written."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Okabe and Ito's palette, which people with colour-blindness can tell apart; its
# yellow is left out, being too faint for a line on white.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
_STYLE: dict[RcKeyType, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "font.size": 10,
    "figure.dpi": 150,
    "svg.hashsalt": "saiopt",
}


@contextlib.contextmanager
def figure(
    paths: Iterable[Path],
    size: tuple[float, float] = (7.2, 4.2),
    columns: int = 1,
    rows: int = 1,
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Open a figure and write it at the end.

    Args:
        paths: Files to write; each suffix names a format.
        size: Width and height in inches.
        columns: Axes side by side.
        rows: Axes on top of each other.

    Yields:
        The figure and its axes, row by row.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        drawing = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.subplots(rows, columns, squeeze=False)
        yield drawing, list(axes.flat)
        for path in paths:
            # Dates in the file would make equal pictures differ.
            metadata = {"Date": None} if path.suffix == ".svg" else None
            drawn = io.BytesIO()
            drawing.savefig(drawn, format=path.suffix[1:], metadata=metadata)
            write_whole(path, drawn.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a picture, or leave what was there where the disk has no room for it.

    Args:
        path: File to write.
        content: Its bytes.
    """
    begun = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        begun.write_bytes(content)
        begun.replace(path)
    except OSError:
        begun.unlink(missing_ok=True)
        raise


def label_ends(
    axes: Axes,
    labels: Sequence[tuple[float, float, str, str]],
    column: float | None = None,
) -> None:
    """Write each curve's name beside its end, without two names overlapping.

    Args:
        axes: Whose limits and scales are final.
        labels: x, y, text and colour of each curve's end.
        column: x of all names, to which lines lead; None for each end's own.
    """
    frame = axes.get_window_extent()
    line = 1.35 * 10 / 72 * axes.figure.dpi  # of 10 point text, in pixels
    ordered = sorted(labels, key=lambda label: label[1])
    pixels = [float(axes.transData.transform(label[:2])[1]) for label in ordered]
    places = _spread(pixels, line, frame.y0 + line / 2, frame.y1 - line / 2)
    point = 72 / axes.figure.dpi
    lead = {"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}
    for (x, y, text, color), pixel, place in zip(ordered, pixels, places, strict=True):
        right = 0.0
        if column is not None:
            ends = axes.transData.transform([(x, y), (column, y)])
            right = float(ends[1][0] - ends[0][0]) * point
        axes.annotate(
            text,
            (x, y),
            xytext=(right + 6, (place - pixel) * point),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops=None if column is None else lead | {"color": color, "lw": 0.6},
        )


def _spread(
    places: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
    """Move sorted places until they are a gap apart and within the limits."""
    result = list(places)
    for _ in range(100):
        for i in range(len(result) - 1):
            overlap = max(gap - (result[i + 1] - result[i]), 0.0)
            result[i] -= overlap / 2
            result[i + 1] += overlap / 2
    for i in range(len(result)):
        result[i] = max(result[i], result[i - 1] + gap if i else low)
    for i in reversed(range(len(result))):
        is_last = i == len(result) - 1
        result[i] = min(result[i], high if is_last else result[i + 1] - gap)
    return result
