"""What ``saiopt bench`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .rows import BenchRow

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_MEANING = (
    "Median and quartiles of {steps} steps in {rounds} interleaved rounds, of one step "
    "where it takes seconds. first: a new optimizer's first step, which allocates its "
    "state. calibr.: the first step on state that was allocated before. temp: peak "
    "memory above the level before a step. "
    "floor: parameters and gradients read, parameters written, state read and written "
    "once, at {speed:.1f} GB/s, measured in the same rounds by adding gradients to "
    "parameters in place."
)


def renderables(rows: Sequence[BenchRow]) -> Iterator[Table | Text]:
    """Lay out all that the command prints, in order.

    Args:
        rows: of one run.

    Yields:
        Title, table and notes for a rich console, which fit 80 columns.
    """
    from rich.text import Text

    yield Text(title(rows[0]), style="bold")
    ran = ranked(rows)
    if ran:
        yield bench_table(ran)
        yield Text()
        first = ran[0]
        text = _MEANING.format(
            steps=max(row.num_steps for row in ran),
            rounds=first.rounds,
            speed=first.bandwidth_gb_per_s or 0.0,
        )
        yield Text(text, style="dim")
    for status in dict.fromkeys(r.status for r in rows if r.step_ms is None):
        names = [r.optimizer for r in rows if r.status == status]
        yield Text(f"{', '.join(names)}: {status}", style="dim")


def title(row: BenchRow) -> str:
    """Name what a row was measured on.

    Args:
        row: any of the run's.

    Returns:
        Such as ``gpt2 · 124,439,808 parameters in float32 · <processor>, 2 threads``.
    """
    place = row.hardware
    if row.device == "cpu":
        place += f", {row.threads} thread" + ("s" if row.threads > 1 else "")
    commit = f" · commit {row.commit[:12]}" if row.commit else ""
    return (
        f"{row.shapes} · {row.num_params:,} parameters in {row.dtype} · {place} · "
        f"torch {row.torch}{commit}"
    )


def ranked(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Return the rows that ran, the fastest first."""
    return sorted(
        (r for r in rows if r.step_ms is not None), key=lambda r: r.step_ms or 0
    )


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Lay out the rows that ran.

    Args:
        rows: in the order of the table.

    Returns:
        A table that fits 80 columns.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("ms", no_wrap=True)
    for heading in (
        "step",
        "quartiles",
        "first",
        "calibr.",
        "state\nB/param",
        "temp\nMiB",
        "times\nfloor",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row.optimizer.startswith(("saiopt", "sgdsai")) else None
        table.add_row(row.optimizer, *_cells(row), style=style)
    return table


def _cells(row: BenchRow) -> list[str]:
    spread = f"{_ms(row.step_ms_q1)} … {_ms(row.step_ms_q3)}"
    return [
        _ms(row.step_ms),
        spread,
        _ms(row.first_step_ms),
        _ms(row.calibration_ms),
        f"{row.state_bytes_per_param:.2f}",
        f"{(row.temporary_bytes or 0) / 2**20:.1f}",
        f"{row.ratio_to_floor:.2f}",
    ]


def _ms(value: float | None) -> str:
    """Write milliseconds with three digits or more."""
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"
