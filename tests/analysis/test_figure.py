import contextlib
import errno
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saiopt.analysis.curves import plot_curves
from saiopt.analysis.figure import figure, label_ends
from saiopt.analysis.gsnr_plot import plot_gsnr
from saiopt.analysis.heat_map import Panel
from saiopt.analysis.matched_decay import plot_matched_decay
from saiopt.analysis.state_plot import plot_against_state
from saiopt.analysis.step_times import StepTime, plot_step_times
from saiopt.analysis.sweep_plot import plot_sweep


@pytest.mark.parametrize(
    "ends", [[1.0, 1.0, 1.0], [0.0, 0.01, 10.0], [9.99, 10.0, 10.0, 10.0], [5.0]]
)
def test_names_at_curve_ends_do_not_overlap(tmp_path: Path, ends: list[float]) -> None:
    with figure([tmp_path / "plot.png"]) as (drawing, (axes,)):
        axes.set(xlim=(0, 1), ylim=(0, 10))
        drawing.draw_without_rendering()
        label_ends(axes, [(1.0, y, f"name{y}", "black") for y in ends])
        drawing.draw_without_rendering()
        renderer = drawing.canvas.get_renderer()
        boxes = sorted(
            (text.get_window_extent(renderer) for text in axes.texts),
            key=lambda box: box.y0,
        )
        assert len(boxes) == len(ends)
        for lower, upper in itertools.pairwise(boxes):
            assert upper.y0 >= lower.y1 - 0.5
        frame = axes.get_window_extent()
        assert frame.y0 <= boxes[0].y0
        assert boxes[-1].y1 <= frame.y1


def test_the_same_curves_give_the_same_file(tmp_path: Path) -> None:
    curves = {"adamw": [[(0, 9.0), (1, 2.0), (2, 1.0)], [(0, 9.0), (1, 3.0)]]}
    paths = [tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "c.png"]
    for path in paths:
        plot_curves(curves, "title", "loss", [path])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def drawn_axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the axes of every figure."""
    kept = []

    @contextlib.contextmanager
    def keeping(*arguments: Any, **sizes: Any) -> Iterator[Any]:
        with figure(*arguments, **sizes) as (drawing, axes):
            yield drawing, axes
            kept.append(axes)

    for module in ("curves", "step_times", "matched_decay", "state_plot"):
        monkeypatch.setattr(f"saiopt.analysis.{module}.figure", keeping)
    return kept


def test_a_run_of_one_evaluation_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = drawn_axes(monkeypatch)
    plot_curves({"adamw": [[(0, 2.3), (60, 0.4)]]}, "title", "loss", [])
    [(axes,)] = kept
    [line] = axes.lines
    assert line.get_marker() == "o"
    assert list(line.get_ydata()) == [2.3, 0.4]
    low, high = axes.get_ylim()
    assert low < 0.4 < 2.3 < high


def test_a_far_beginning_leaves_room_for_what_differs_and_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = drawn_axes(monkeypatch)
    plot_curves({"adamw": [[(0, 5.5), (10, 2.1), (20, 2.0)]]}, "title", "loss", [])
    [(axes,)] = kept
    assert axes.get_ylim()[1] < 2.2
    assert "at 0: 5.5" in [text.get_text() for text in axes.texts]


def test_a_bar_that_is_cut_is_the_longest_thing_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = drawn_axes(monkeypatch)
    bars = [
        StepTime("fast", True, (0.05, 0.08, 0.1), 0.2),
        StepTime("unsteady", False, (0.3, 0.5, 1.7), 0.2),
        StepTime("slow", False, (5.0, 5.9, 6.0), 0.2),
    ]
    plot_step_times(bars, "a · b · c", tmp_path / "bars.png")
    [(axes,)] = kept
    lengths = sorted(patch.get_width() for patch in axes.patches)
    assert lengths[-1] == pytest.approx(1.7)
    assert axes.get_xlim()[1] > lengths[-1]


def test_optimizers_share_the_axis_of_what_they_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = drawn_axes(monkeypatch)
    cells = [{(0.1, 0.1): 0.9, (0.1, 0.2): low} for low in (0.63, 0.95)]
    panels = [Panel(f"o{i}", values, True) for i, values in enumerate(cells)]
    plot_matched_decay(panels, "accuracy", "title", [])
    [axes] = kept
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_a_picture_without_room_on_the_disk_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plot.svg"
    plot_curves({"adamw": [[(0, 2.3), (60, 0.4)]]}, "title", "loss", [path])
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        plot_curves({"sgd": [[(0, 2.3), (60, 0.4)]]}, "title", "loss", [path])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_optimizer_that_diverged_at_once_leaves_the_picture_whole(
    tmp_path: Path,
) -> None:
    curves = {"adamw": [[(0, 9.0), (5, 2.0)]], "sgd": [[(0, 9.0)]]}
    plot_curves(curves, "title", "loss", [tmp_path / "plot.svg"])
    assert "adamw" in (tmp_path / "plot.svg").read_text()


def test_gsnr_without_a_finite_value_leaves_the_picture_whole(tmp_path: Path) -> None:
    courses = {"w": [(0, float("nan"))], "v": [(0, 1.0)]}
    plot_gsnr(courses, [tmp_path / "plot.svg"])
    assert "v" in (tmp_path / "plot.svg").read_text()


def test_a_sweep_draws_one_panel_per_recipe(tmp_path: Path) -> None:
    grids = {"adamw": [(0.1, 3.0), (0.2, 2.0), (0.5, None)], "sgd": [(1.0, 2.5)]}
    plot_sweep(
        {"gpt": grids, "vit": grids},
        {"gpt": "loss", "vit": "accuracy"},
        {"gpt": False, "vit": True},
        [tmp_path / "sweep.svg"],
    )
    drawing = (tmp_path / "sweep.svg").read_text()
    assert "gpt" in drawing
    assert "vit" in drawing


def test_a_sweep_of_many_optimizers_draws_each_in_its_column(tmp_path: Path) -> None:
    names = [f"rival-{i}" for i in range(9)]
    grids = {name: [(0.1, 3.0), (0.2, 2.0 + i)] for i, name in enumerate(names)}
    columns = {"first": names[:4], "second": names[4:]}
    for path, chosen in ((tmp_path / "one.svg", None), (tmp_path / "two.svg", columns)):
        plot_sweep({"gpt": grids}, {"gpt": "loss"}, {"gpt": False}, [path], chosen)
        assert all(name in path.read_text() for name in names)
    assert "second" in (tmp_path / "two.svg").read_text()


@pytest.mark.parametrize("begin", [9.0, 0.1])
def test_a_metric_against_state_shows_what_the_ends_differ_by(
    begin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = drawn_axes(monkeypatch)
    points = {"adamw": (8.0, 2.1, 5.0), "ours": (4.0, 2.0, 0.01)}
    curves = {name: [(0, begin), (9, mean)] for name, (_, mean, _) in points.items()}
    plot_against_state(points, curves, "metric", [], {"ours": 0.5})
    [(state, by_steps, by_seconds)] = kept
    for axes in (state, by_steps):
        low, high = axes.get_ylim()
        assert 1.85 < low < 2.0
        assert 2.1 < high < 2.25
        assert sorted(text.get_text() for text in axes.texts) == ["adamw", "ours"]
    [line] = by_seconds.lines
    assert list(line.get_xdata()) == [0.0, 4.5]
    leads = [text.arrow_patch is not None for text in state.texts]
    assert leads == [True, True]
