"""What a user sees while runs are trained."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from saiopt.lab.durations import duration
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.run import Run

_ENDED = frozenset({"finished", "diverged", "reused"})
_BAR_WIDTH = 12
# Characters beside a bar that tell step, loss and metric.
_ROOM_OF_BAR = 45
_REFRESH_SECONDS = 0.1


Display: TypeAlias = "PlainLines | LiveBars"


def display(runs: Sequence[Run], console: Console) -> Display:
    """Choose bars on a terminal and plain lines elsewhere.

    Args:
        runs: All that will be trained.
        console: Where to show them.

    Returns:
        A context manager that observes the runs.
    """
    return (LiveBars if console.is_terminal else PlainLines)(runs, console)


class Pace:
    """Steps per second in this session and the time that is left for all runs.

    Args:
        runs: All that will be trained.
        clock: Seconds, for tests.
    """

    def __init__(
        self, runs: Sequence[Run], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._left = {title(run): run.recipe.steps for run in runs}
        self._clock = clock
        self._started: float | None = None
        self._trained = 0

    def update(self, progress: Progress) -> None:
        """Take notice of a step.

        Args:
            progress: What has happened.
        """
        if self._started is None and progress.status == "started":
            self._started = self._clock()
        self._trained += progress.loss is not None
        ended = progress.status in _ENDED
        left = 0 if ended else progress.run.recipe.steps - progress.step
        self._left[title(progress.run)] = left

    def __str__(self) -> str:
        """Return steps per second and the time left, nothing before the first step."""
        if self._started is None or not self._trained:
            return ""
        seconds = self._clock() - self._started
        left = sum(self._left.values()) * seconds / self._trained
        return f"{self._trained / seconds:.1f} steps/s, {duration(left)} left"


class PlainLines:
    """Print a line per evaluation, for logs and pipes."""

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._pace = Pace(runs)
        self._console = console
        self._loss: float | None = None

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        """Show what has happened.

        Args:
            progress: Of the runs in the order in which they are trained.
        """
        self._pace.update(progress)
        if progress.status == "started":
            self._loss = None
        if progress.loss is not None:
            self._loss = progress.loss
        if progress.status in _ENDED:
            self._print(ending(progress))
        elif progress.status == "started" and progress.step:
            self._print(f"{title(progress.run)}: goes on from step {progress.step}")
        elif progress.metrics is not None and progress.step:
            # A resume begins with an evaluation where its checkpoint lies at one.
            loss = "" if self._loss is None else f"loss {self._loss:.4f}"
            parts = (f"step {progress.step}", loss, validation(progress), self._pace)
            told = ", ".join(text for text in map(str, parts) if text)
            self._print(f"{title(progress.run)}: {told}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


class LiveBars:
    """Show a bar for the present run and one for all; an ended run leaves a line.

    Where a line has no room for everything, the bar goes first, then the loss: a number
    is never cut.
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._pace = Pace(runs)
        self._console = console
        self._width = max(len(title(run)) for run in runs)
        self._room = console.width - self._width - 1
        has_bar = self._room >= _ROOM_OF_BAR + _BAR_WIDTH
        bar = [BarColumn(bar_width=_BAR_WIDTH)] if has_bar else []
        self._room -= len(bar) * (_BAR_WIDTH + 1)
        self._bars = Bars(
            TextColumn("{task.description}"),
            *bar,
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            # A thread that draws while another one prints would leave lines behind.
            auto_refresh=False,
        )
        self._refreshed = -math.inf
        self._present: TaskID | None = None
        self._all = self._bars.add_task(
            f"all {len(runs)} runs".ljust(self._width), total=len(runs), text=""
        )
        self._loss = self._validation = ""

    def __enter__(self) -> "LiveBars":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show what has happened.

        Args:
            progress: Of the runs in the order in which they are trained.
        """
        self._pace.update(progress)
        if progress.status in _ENDED:
            self._end(progress)
        else:
            self._show(progress)
        self._bars.update(
            self._all, text=fitting(str(self._pace).split(", "), self._room)
        )
        self._refresh()

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = now
            self._bars.refresh()

    def _show(self, progress: Progress) -> None:
        total = progress.run.recipe.steps
        if self._present is None:
            self._loss = self._validation = ""
            self._present = self._bars.add_task(
                title(progress.run).ljust(self._width), total=total, text=""
            )
        if progress.loss is not None:
            self._loss = f"loss {progress.loss:.3f}"
        if progress.metrics is not None:
            self._validation = validation(progress)
        parts = (f"{progress.step}/{total}", self._validation, self._loss)
        text = fitting(parts, self._room)
        self._bars.update(self._present, completed=progress.step, text=text)

    def _end(self, progress: Progress) -> None:
        if self._present is not None:
            self._bars.remove_task(self._present)
            self._present = None
        self._bars.advance(self._all)
        self._console.print(ending(progress), highlight=False, markup=False)


def title(run: Run) -> str:
    """Name a run among the others of its recipe."""
    return f"{run.optimizer} seed {run.seed}"


def fitting(parts: Iterable[str], room: int) -> str:
    """Join as many parts as fit, the first ones first.

    Args:
        parts: Empty ones are left out.
        room: Characters.

    Returns:
        One line.

    >>> fitting(["12/300", "accuracy 0.95", "loss 0.123"], 24)
    '12/300  accuracy 0.95'
    """
    text = ""
    for part in filter(None, parts):
        longer = f"{text}  {part}" if text else part
        if len(longer) > room:
            break
        text = longer
    return text


def validation(progress: Progress) -> str:
    """Write the recipe's metric of an evaluation."""
    name = progress.run.recipe.metric.name
    return f"validation {name} {(progress.metrics or {})[name]:.4f}"


def ending(progress: Progress) -> str:
    """Write how a run ended."""
    if not progress.metrics:
        return f"{title(progress.run)}: diverged at step {progress.step}"
    before = ", finished before" if progress.status == "reused" else ""
    if progress.elsewhere:
        before += f" on {progress.elsewhere}"
    return f"{title(progress.run)}: {validation(progress)}{before}"
