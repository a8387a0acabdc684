"""What a user sees while cells are made."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from saiopt.lab.durations import duration

Counter: TypeAlias = Callable[[float, str], None]
_LINE_SECONDS = 10.0


@contextlib.contextmanager
def counting(
    total: float,
    unit: str,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Counter]:
    """Show a bar on a terminal and a line every ten seconds elsewhere.

    Args:
        total: Number of cells or steps.
        unit: Their name.
        console: Where to show it.
        clock: Seconds, for tests.

    Yields:
        To be called with how many were made and a word on the latest.
    """
    started = clock()
    if console.is_terminal:
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(f"{unit}  {{task.fields[text]}}"),
            console=console,
            transient=True,
        )
        with bars:
            bar = bars.add_task("", total=total, text="")
            yield lambda made, text: bars.update(bar, advance=made, text=text)
    else:
        yield _Lines(total, unit, console, clock)
    console.print(f"{total:g} {unit} in {duration(clock() - started)}", highlight=False)


class _Lines:
    def __init__(
        self, total: float, unit: str, console: Console, clock: Callable[[], float]
    ) -> None:
        self._total, self._unit = total, unit
        self._console, self._clock = console, clock
        self._made, self._shown = 0.0, clock()

    def __call__(self, made: float, text: str) -> None:
        self._made += made
        if self._clock() - self._shown < _LINE_SECONDS:
            return
        self._shown = self._clock()
        line = f"{self._made:g}/{self._total:g} {self._unit}, {text}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
