from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

from saiopt.analysis import noise_phase
from saiopt.analysis.noise_phase import (
    TemperatureCurve,
    plot_effects,
    plot_temperatures,
)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of what is drawn, which goes to no file."""
    found = []

    @contextmanager
    def figure(paths, size, columns):
        drawing = Figure(figsize=size)
        found.extend(drawing.subplots(1, columns, squeeze=False).ravel())
        yield drawing, found

    monkeypatch.setattr(noise_phase, "figure", figure)
    return found


def test_the_line_of_theory_has_its_slope_and_goes_through_the_middle(drawn):
    points = [(0.25, 1.0, 2.0), (1.0, 3.0, 1.0), (4.0, 9.0, 1.0)]
    plot_temperatures({"T": {"D = 3": TemperatureCurve(points, 0.5)}}, "title", [])
    (axes,) = drawn
    (line,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(line.get_xdata()) == [0.25, 1.0, 4.0]
    assert list(line.get_ydata()) == pytest.approx([1.5, 3.0, 6.0])
    (bars,) = axes.containers
    ends = bars.lines[2][0].get_segments()[0]
    # Up and down by the same factor.
    assert ends[:, 1].tolist() == pytest.approx([0.5, 2.0])


def test_each_data_set_has_a_panel_and_curves_do_not_hide_each_other(drawn):
    points = [(1.0, -0.1, 0.02), (8.0, 0.1, 0.0)]
    plot_effects(
        {name: {"best T": points, "worst T": points} for name in ("a", "b")}, "", []
    )
    assert [axes.get_title() for axes in drawn] == ["a", "b"]
    for axes in drawn:
        best, worst = (container.lines[0] for container in axes.containers)
        assert list(best.get_ydata()) == list(worst.get_ydata()) == [-0.1, 0.1]
        assert list(best.get_xdata()) != list(worst.get_xdata())
