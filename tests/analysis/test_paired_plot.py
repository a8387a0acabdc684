from contextlib import contextmanager

from matplotlib.figure import Figure

from saiopt.analysis import paired_plot


def test_a_variant_has_the_same_line_in_every_panel(monkeypatch):
    drawn = []

    @contextmanager
    def figure(paths, size, columns, rows):
        axes = Figure(figsize=size).subplots(rows, columns, squeeze=False).ravel()
        drawn.extend(axes)
        yield None, list(axes)

    monkeypatch.setattr(paired_plot, "figure", figure)
    panels = {"one": {"a": [1.0], "b": [2.0]}, "two": {"c": [3.0], "b": [4.0]}}
    intervals = {
        name: {variant: (pairs[0], 0.5) for variant, pairs in panel.items()}
        for name, panel in panels.items()
    }
    paired_plot.plot_differences(panels, intervals, dict.fromkeys(panels, "x"), [])
    left, right = drawn
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c"]
    for axes, expected in ((left, {1.0: 0, 2.0: 1}), (right, {3.0: 2, 4.0: 1})):
        lines = [line for line in axes.lines if line.get_marker() == "o"]
        found = {float(line.get_xdata()[0]): int(line.get_ydata()[0]) for line in lines}
        assert found == expected
