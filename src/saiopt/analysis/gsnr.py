"""g-SNR of every block while a model trains."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from saiopt.scaling import gsnr
from saiopt.sharding import measure_blocks


@dataclasses.dataclass(frozen=True)
class GSNRRow:
    """One block at one step.

    Args:
        block: Name of the parameter.
        numel: Its number of entries n.
        step: When it was measured.
        gsnr: ‖g‖ / (std(g) + ε), NaN for a gradient that is zero or not finite.
    """

    block: str
    numel: int
    step: int
    gsnr: float

    @property
    def ratio(self) -> float:
        """g-SNR over √n, about 1 for a gradient of nearly zero mean."""
        return self.gsnr / math.sqrt(self.numel)


class GSNRProbe:
    """Measure g-SNR between ``backward()`` and ``step()``, and change nothing.

    Args:
        model: A module, or pairs of name and parameter.
        eps: ε of the optimizer that is studied.

    Attributes:
        rows: Everything measured so far, in order.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer(torch.tensor([1.0, -1.0])).sum().backward()
    >>> probe = GSNRProbe(layer)
    >>> [row] = probe.record(step=0)
    >>> row.block, row.numel, round(row.gsnr, 3)
    ('weight', 2, 1.0)
    """

    def __init__(
        self, model: nn.Module | Iterable[tuple[str, Tensor]], eps: float = 1e-8
    ) -> None:
        named = model.named_parameters() if isinstance(model, nn.Module) else model
        self._named = list(named)
        self._eps = eps
        self.rows: list[GSNRRow] = []

    def record(self, step: int) -> list[GSNRRow]:
        """Measure all blocks that have a gradient.

        Args:
            step: Number that the rows will carry.

        Returns:
            The new rows, one per block, which are also kept in ``rows``.
        """
        blocks = [(name, p) for name, p in self._named if p.grad is not None]
        moments = measure_blocks([p for _, p in blocks])
        values = gsnr(moments, self._eps).masked_fill(~moments.usable, math.nan)
        new = [
            GSNRRow(name, p.numel(), step, value)
            for (name, p), value in zip(blocks, values.tolist(), strict=True)
        ]
        self.rows += new
        return new

    def table(self) -> str:
        """Return the first and last measurement of every block as text."""
        return gsnr_table(self.rows)

    def plot(self, path: Path | str, title: str = "") -> None:
        """Draw g-SNR/√n of every block over training.

        Args:
            path: File to write; its suffix names the format.
            title: Heading.
        """
        from saiopt.analysis.gsnr_plot import plot_gsnr

        plot_gsnr(self.rows, [Path(path)], title)


def gsnr_by_block(rows: Iterable[GSNRRow]) -> dict[str, list[GSNRRow]]:
    """Sort measurements by block.

    Args:
        rows: In the order of their steps.

    Returns:
        The rows of each block, blocks in the order of their first row.
    """
    blocks: dict[str, list[GSNRRow]] = {}
    for row in rows:
        blocks.setdefault(row.block, []).append(row)
    return blocks


def gsnr_table(rows: Iterable[GSNRRow]) -> str:
    """Write the first and last measurement of every block as text.

    Args:
        rows: In the order of their steps.

    Returns:
        A heading and one line per block, columns as wide as they need to be.
    """
    lines = [("block", "n", "√n", "g-SNR", "at end", "/√n", "at end")]
    for block, measured in gsnr_by_block(rows).items():
        first, last = measured[0], measured[-1]
        lines.append(
            (
                block,
                f"{first.numel:,}",
                f"{math.sqrt(first.numel):.1f}",
                f"{first.gsnr:.1f}",
                f"{last.gsnr:.1f}",
                f"{first.ratio:.3f}",
                f"{last.ratio:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def gsnr_summary(rows: Iterable[GSNRRow]) -> str:
    """Say in one line how far g-SNR is from √n.

    Args:
        rows: With at least one finite ratio.

    Returns:
        The median and the largest ratio over all blocks and steps.
    """
    finite = [row for row in rows if math.isfinite(row.ratio)]
    largest = max(finite, key=lambda row: row.ratio)
    median = statistics.median(row.ratio for row in finite)
    return (
        f"g-SNR/√n: median {median:.3f}, largest {largest.ratio:.3f} "
        f"({largest.block}, step {largest.step})"
    )
