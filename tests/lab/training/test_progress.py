import io

import pytest
from rich.console import Console

from saiopt.lab.recipe import Recipe
from saiopt.lab.training.loop import Progress
from saiopt.lab.training.progress import Pace, display
from saiopt.lab.training.run import Run


@pytest.fixture
def runs(tiny: Recipe) -> list[Run]:
    return [Run(tiny, "adamw", 0.1, seed) for seed in (0, 1)]


def story(runs: list[Run]) -> list[Progress]:
    """A resumed run and a diverged one."""
    first, second = runs
    metrics = {"accuracy": 0.5, "loss": 1.0}
    return [
        Progress(first, 8, status="started"),
        Progress(first, 9, 2.25),
        Progress(first, 10, 2.0),
        Progress(first, 10, None, metrics),
        Progress(first, 12, None, metrics, "finished"),
        Progress(second, 0, status="started"),
        Progress(second, 1, 3.0),
        Progress(second, 1, None, {}, "diverged"),
    ]


def shown(runs: list[Run], *, is_terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(
        file=screen, force_terminal=is_terminal, width=80, color_system=None
    )
    with display(runs, console) as observe:
        for progress in story(runs):
            observe(progress)
    return screen.getvalue()


def test_plain_lines_tell_evaluations_and_ends(runs: list[Run]) -> None:
    lines = shown(runs, is_terminal=False).splitlines()
    assert lines[0] == "adamw seed 0: goes on from step 8"
    assert lines[1].startswith(
        "adamw seed 0: step 10, loss 2.0000, validation accuracy 0.5000, "
    )
    assert lines[2] == "adamw seed 0: validation accuracy 0.5000"
    assert lines[3] == "adamw seed 1: diverged at step 1"
    assert len(lines) == 4


def test_a_resume_at_an_evaluation_says_no_loss_that_it_does_not_know(
    runs: list[Run],
) -> None:
    screen = io.StringIO()
    with display(runs, Console(file=screen, width=80)) as observe:
        observe(Progress(runs[0], 8, status="started"))
        observe(Progress(runs[0], 8, None, {"accuracy": 0.5, "loss": 1.0}))
    line = screen.getvalue().splitlines()[1]
    assert line == "adamw seed 0: step 8, validation accuracy 0.5000"


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_narrow_terminal_cuts_no_number(runs: list[Run], width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with display(runs, console) as observe:
        for progress in story(runs):
            observe(progress)
            observe._bars.refresh()
    assert "…" not in screen.getvalue()
    assert "10/12" in screen.getvalue()


def test_a_terminal_keeps_a_line_for_every_ended_run(runs: list[Run]) -> None:
    screen = shown(runs, is_terminal=True)
    assert "adamw seed 0: validation accuracy 0.5000\n" in screen
    assert "adamw seed 1: diverged at step 1\n" in screen


def test_the_pace_counts_the_steps_of_this_session_only(runs: list[Run]) -> None:
    seconds = iter([100.0, 104.0, 104.0])
    pace = Pace(runs, lambda: next(seconds))
    assert str(pace) == ""
    pace.update(Progress(runs[0], 8, status="started"))
    pace.update(Progress(runs[0], 9, 2.0))
    pace.update(Progress(runs[0], 10, 2.0))
    # 2 steps in 4 seconds; 2 + 12 are left.
    assert str(pace) == "0.5 steps/s, 28 s left"
    pace.update(Progress(runs[0], 12, None, {}, "diverged"))
    assert str(pace) == "0.5 steps/s, 24 s left"
