"""Measurements of g-SNR, and what a reader sees of them."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class GSNRRow:
    """One block at one step.

    Args:
        block: Name of the parameter.
        numel: Its number of entries n.
        step: When it was measured.
        gsnr: ‖g‖ / (std(g) + ε), NaN for a gradient that is zero or not finite.
        sparsity: Share of the gradient's entries that are exactly zero.
        update: Size of the step, ηs·rms(m) / rms(θ), NaN until it is known.
        relative_mean: r = |mean| / std of the gradient, which is what g-SNR, about
            √((n-1)(1+r²)), tells beyond n; NaN where the entries hardly differ too.
    """

    block: str
    numel: int
    step: int
    gsnr: float
    sparsity: float = math.nan
    update: float = math.nan
    relative_mean: float = math.nan

    @property
    def ratio(self) -> float:
        """g-SNR over √n, about 1 for a gradient of nearly zero mean."""
        return self.gsnr / math.sqrt(self.numel)


def ratio_courses(rows: Iterable[GSNRRow]) -> dict[str, list[tuple[int, float]]]:
    """Return g-SNR/√n over training.

    Args:
        rows: In the order of their steps.

    Returns:
        Steps and ratios by block, NaN among them, without blocks of one entry, whose
        ratio is 1 by definition.
    """
    return {
        block: [(row.step, row.ratio) for row in measured]
        for block, measured in _by_block(rows).items()
        if measured[0].numel > 1
    }


def gsnr_table(rows: Iterable[GSNRRow], width: float = math.inf) -> str:
    """Write the first and last measurement of every block as text.

    Args:
        rows: In the order of their steps.
        width: Characters of a line. Where names and numbers do not fit side by side,
            the numbers get lines of their own, and the last columns go.

    Returns:
        A heading and one line per block, columns as wide as they need to be.
    """
    lines = [
        (
            *("block", "n", "√n", "g-SNR", "/√n", "at end"),
            *("zeros", "at end", "update", "at end"),
        )
    ]
    for block, measured in _by_block(rows).items():
        first, last = measured[0], measured[-1]
        lines.append(
            (
                block,
                f"{first.numel:,}",
                f"{math.sqrt(first.numel):.1f}",
                _number(first.gsnr, ".1f"),
                _number(first.ratio, ".3f"),
                _number(last.ratio, ".3f"),
                _number(first.sparsity, ".0%"),
                _number(last.sparsity, ".0%"),
                _number(first.update, ".0e"),
                _number(last.update, ".0e"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + 2 * len(widths) - 2 > width:
        return _in_two_lines(lines, widths[1:], width)
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _in_two_lines(
    lines: Sequence[Sequence[str]], widths: Sequence[int], width: float
) -> str:
    ends = itertools.accumulate(2 + each for each in widths)
    widths = [each for each, end in zip(widths, ends, strict=True) if end <= width]
    return "\n".join(
        f"{name}\n  {'  '.join(map(str.rjust, numbers, widths))}"
        for name, *numbers in lines
    )


def gsnr_summary(rows: Iterable[GSNRRow]) -> str:
    """Say in one line how far g-SNR is from √n.

    Args:
        rows: Of any blocks and steps.

    Returns:
        The median and the largest ratio over all blocks and steps.
    """
    finite = [row for row in rows if math.isfinite(row.ratio)]
    if not finite:
        return "g-SNR/√n: no gradient was finite and not zero"
    largest = max(finite, key=lambda row: row.ratio)
    median = statistics.median(row.ratio for row in finite)
    return (
        f"g-SNR/√n: median {median:.3f}, largest {largest.ratio:.3f} "
        f"({largest.block}, step {largest.step})"
    )


def _by_block(rows: Iterable[GSNRRow]) -> dict[str, list[GSNRRow]]:
    blocks: dict[str, list[GSNRRow]] = {}
    for row in rows:
        blocks.setdefault(row.block, []).append(row)
    return blocks


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
