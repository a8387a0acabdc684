"""Picture of g-SNR/√n over training, one line per block."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from saiopt.analysis.figure import COLORS, figure, label_ends
from saiopt.analysis.gsnr import GSNRRow, gsnr_by_block

_NAMED = 5
_LARGE = 4.0


def plot_gsnr(rows: Iterable[GSNRRow], paths: Sequence[Path], title: str = "") -> None:
    """Draw all blocks in grey and name those that leave 1 farthest.

    The vertical axis is logarithmic once a ratio is large; it can be anything up to
    that of a gradient whose entries are nearly equal.

    Args:
        rows: In the order of their steps.
        paths: Files to write.
        title: Heading.
    """
    blocks = {
        block: [(row.step, row.ratio) for row in measured if row.ratio == row.ratio]
        for block, measured in gsnr_by_block(rows).items()
        if measured[0].numel > 1
    }
    drawn = {block: points for block, points in blocks.items() if points}
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
