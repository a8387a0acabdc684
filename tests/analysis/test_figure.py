import itertools
from pathlib import Path

import pytest

from saiopt.analysis.curves import plot_curves
from saiopt.analysis.figure import figure, label_ends
from saiopt.analysis.gsnr_plot import plot_gsnr
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
