"""Picture of g-SNR/√n over training, one line per block."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure, label_ends

_NAMED = 5
_LARGE = 4.0
_COLUMNS = 3
_LARGE_BLOCK = 1024


def plot_gsnr(
    courses: Mapping[str, Sequence[tuple[int, float]]],
    paths: Sequence[Path],
    title: str = "",
) -> None:
    """Draw all blocks in grey and name those that leave 1 farthest.

    The vertical axis is logarithmic once a ratio is large; it can be anything up to
    that of a gradient whose entries are nearly equal.

    Args:
        courses: Steps and ratios by block; a NaN is not drawn.
        paths: Files to write.
        title: Heading.
    """
    known = {
        block: [(step, ratio) for step, ratio in points if not math.isnan(ratio)]
        for block, points in courses.items()
    }
    drawn = {block: points for block, points in known.items() if points}
    farthest = sorted(drawn, key=lambda block: _distance(drawn[block]))[-_NAMED:]
    with figure(paths, (7.6, 4.6)) as (drawing, (axes,)):
        for points in drawn.values():
            axes.plot(*zip(*points, strict=True), color="#BBBBBB", lw=0.8)
        ends = []
        for color, block in zip(COLORS, reversed(farthest), strict=False):
            axes.plot(*zip(*drawn[block], strict=True), color=color, lw=1.8)
            ends.append((*drawn[block][-1], block, color))
        axes.axhline(1, color="#333333", lw=0.8, ls=":")
        axes.set(xlabel="step", ylabel="g-SNR / √n", title=title)
        if any(_distance(points) > _LARGE for points in drawn.values()):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        drawing.draw_without_rendering()
        label_ends(axes, ends)


def _distance(points: Sequence[tuple[int, float]]) -> float:
    return max(abs(ratio - 1) for _, ratio in points)


def plot_gsnr_panels(
    panels: Mapping[str, Sequence[tuple[int, Sequence[float], Sequence[float]]]],
    paths: Sequence[Path],
) -> None:
    """Draw one panel per run and one line per block, matrices apart from vectors.

    Args:
        panels: Title, then number of entries, shares of training and g-SNR of a block.
        paths: Files to write.
    """
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size = (3.6 * columns, 2.6 * rows + 0.2)
    with figure(paths, size, columns, rows) as (_, all_axes):
        for unused in all_axes[len(panels) :]:
            unused.remove()
        for axes, (title, blocks) in zip(all_axes, panels.items(), strict=False):
            # Large blocks last, on top of the many small ones.
            for numel, shares, values in sorted(blocks, key=lambda block: block[0]):
                ratios = [value / math.sqrt(numel) for value in values]
                color = COLORS[0] if numel >= _LARGE_BLOCK else "#BBBBBB"
                axes.plot(shares, ratios, color=color, lw=0.9)
            axes.axhline(1, color="#333333", lw=0.8, ls=":")
            axes.set_title(title)
            if axes.get_ylim()[1] > _LARGE:
                axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        for axes in all_axes[::columns]:
            axes.set_ylabel("g-SNR / √n")
        for axes in all_axes[max(len(panels) - columns, 0) : len(panels)]:
            axes.set_xlabel("share of training")
        handles = [
            all_axes[0].plot([], [], color=color, label=label)[0]
            for color, label in (
                (COLORS[0], f"blocks of {_LARGE_BLOCK} entries or more"),
                ("#BBBBBB", "smaller blocks"),
            )
        ]
        all_axes[0].figure.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False
        )
