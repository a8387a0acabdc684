import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from saiopt.analysis.curves import Curve, plot_curves
from saiopt.cli import main
from saiopt.lab.comparison.compare import compare, plan, prepare
from saiopt.lab.recipe import Recipe, override
from saiopt.lab.report.section import Section, pictures
from saiopt.lab.report.sections import sweep_section
from saiopt.lab.report.sources import Source, environments, find_sources
from saiopt.lab.report.write import page
from saiopt.lab.table import TextTable, text_columns
from saiopt.lab.training.outcome import carry_out
from saiopt.lab.training.run import Run

CPU = torch.device("cpu")


class Reader(HTMLParser):
    """Collect what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values] if tag == "img" else []
        for name in ("src", "href", "xlink:href"):
            if name in values:
                self.addresses.append(values[name])

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def runs_dir(tiny: Recipe, tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    lrs = {"adamw": 0.01, "sgd": 1e30}
    runs = plan(tiny, list(lrs), (0, 1), lrs)
    compare(runs, prepare(runs), folder, CPU, lambda _: None)
    return folder


def report(folder: Path, *arguments: str) -> Reader:
    output = folder.parent / "report.html"
    options = ["--runs-dir", str(folder), "--output", str(output)]
    assert main(["report", *arguments, *options]) == 0
    return Reader(output.read_text("utf-8"))


def test_the_page_needs_nothing_from_elsewhere(runs_dir: Path) -> None:
    page = report(runs_dir)
    assert page.images
    assert page.addresses
    held = ("#", "data:image/svg+xml;base64,")
    assert all(address.startswith(held) for address in page.addresses)


def test_every_reference_in_the_page_has_one_target(runs_dir: Path) -> None:
    page = report(runs_dir, *(str(f) for f in runs_dir.glob("compare-*")))
    assert len(set(page.ids)) == len(page.ids)
    wanted = {a[1:] for a in page.addresses if a.startswith("#")}
    assert wanted == set(page.ids)


def test_a_comparison_shows_its_numbers(runs_dir: Path) -> None:
    [path] = runs_dir.glob("compare-*/comparison.json")
    row = json.loads(path.read_text())["rows"][0]["metric"]
    words = report(runs_dir).words
    assert f"{row['mean']:.4f} ± {row['half_width']:.4f} (n=2)" in words
    assert "diverged (seed 0, 1)" in words


def test_the_runs_of_a_comparison_are_not_told_again(runs_dir: Path) -> None:
    kinds = [source.kind for source in find_sources([], runs_dir).sources]
    assert kinds == ["comparison"]
    [folder] = runs_dir.glob("vit-digits-adamw-seed0-*")
    assert [s.kind for s in find_sources([folder], runs_dir).sources] == ["run"]
    assert "single runs" in report(runs_dir, str(folder)).words


def test_runs_that_differ_in_the_recipe_are_told_apart(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def keep_names(curves: dict[str, list[Curve]], *rest: Any) -> None:
        drawn.extend(curves)
        plot_curves(curves, *rest)

    monkeypatch.setattr("saiopt.lab.report.runs_section.plot_curves", keep_names)
    folder = tmp_path / "runs"
    for clip_norm in ("1.0", "0.001"):
        run = Run(override(tiny, {"clip_norm": clip_norm}), "adamw", 0.01, 0)
        task = run.recipe.task.load()
        carry_out(run, task, folder, CPU, lambda _: None)
    assert "clip_norm" in report(folder).words
    assert sorted(drawn) == [
        "adamw lr 0.01 clip_norm=0.001",
        "adamw lr 0.01 clip_norm=1.0",
    ]


def test_runs_of_other_code_are_told_apart(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"
    for code in ("before", "after"):
        monkeypatch.setattr(
            "saiopt.lab.training.outcome.code_hash", lambda *_, code=code: code
        )
        run = Run(tiny, "adamw", 0.01, 0)
        carry_out(run, prepare([run]), folder, CPU, lambda _: None)
    drawn: list[str] = []
    monkeypatch.setattr(
        "saiopt.lab.report.runs_section.plot_curves",
        lambda curves, *_: drawn.extend(curves),
    )
    words = report(folder).words
    assert "code" in words
    assert sorted(drawn) == ["adamw lr 0.01 code=after", "adamw lr 0.01 code=before"]


def test_the_environment_is_that_of_the_runs(runs_dir: Path) -> None:
    values = environments(find_sources([], runs_dir).sources)
    assert values["torch"] == [torch.__version__]
    [folder] = runs_dir.glob("vit-digits-adamw-seed0-*")
    path = folder / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "0.1"}))
    values = environments(find_sources([], runs_dir).sources)
    several = [text.partition(" (")[0] for text in values["torch"]]
    assert several == [torch.__version__, "0.1"]
    assert values["torch"][1] == f"0.1 (1 run, such as {folder.name})"


def test_a_sweep_that_is_not_finished_says_so(tmp_path: Path) -> None:
    cell = {"lr": 0.1, "weight_decay": 0.0, "mean": 0.5, "values": {"0": 0.5}}
    cell |= {"folders": [], "total_seconds": 1.0}
    swept = {"optimizer": "sgd", "best": cell, "borders": [], "cells": [cell]}
    content = {
        "recipe": "vit-digits",
        "metric": {"label": "accuracy", "higher_is_better": True},
        "optimizers": [{**swept, "missing": 3}, {**swept, "missing": 0}],
        "seeds": [0],
        "sampler": "grid",
    }
    html = page("", [], [sweep_section(Source("sweep", tmp_path, content))])
    assert "sgd: 3 of 4 cells are not finished" in html
    assert html.count("not finished") == 1


def test_text_cannot_become_markup() -> None:
    table = TextTable(text_columns("<script>"), [["<script>"]], warnings=["<script>"])
    section = Section("<script>", tables=[table], facts="<script>")
    html = page("<script>", ["<script>"], [section])
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 8


@pytest.mark.parametrize("points", [400, 1200])
def test_a_picture_scrolls_before_its_letters_get_small(
    tmp_path: Path, points: int
) -> None:
    path = tmp_path / "picture.svg"
    text = f'<?xml version="1.0"?><svg width="{points}pt" height="100pt"/>'
    path.write_text(text)
    section = Section("x", pictures((path, "<x>"), (tmp_path / "none.svg", "y")))
    [image] = Reader(page("", [], [section])).images
    assert image["alt"] == "<x>"
    kind, _, data = image["src"].partition("base64,")
    assert kind == "data:image/svg+xml;"
    assert base64.b64decode(data).decode() == text
    least, largest = (
        int(re.findall(rf"{name}-width:(\d+)px", image["style"])[0])
        for name in ("min", "max")
    )
    # 8.5 points are at least 7.5 pixels.
    assert least * 8.5 / points > 7.5
    assert largest == round(points * 4 / 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "runs must be folders that a finished command has written"),
        ([], "runs_dir must hold finished runs, got .*/empty"),
    ],
)
def test_nothing_to_report_is_refused(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", *arguments, "--runs-dir", str(tmp_path / "empty")]) == 2
    assert re.fullmatch(f"saiopt: {sentence}.*\n", capsys.readouterr().err)


DAMAGES: list[Callable[[Path], object]] = [
    lambda run: (run / "result.json").write_text("{"),
    lambda run: (run / "result.json").write_text("{}"),
    lambda run: (run / "result.json").write_text("[]"),
    lambda run: (run / "result.json").write_text(
        '{"status": 1, "step": 1, "metrics": 3, "total_seconds": 1}'
    ),
    lambda run: (run / "recipe.json").write_text("{"),
    lambda run: (run / "recipe.json").write_text('{"recipe": 3}'),
    lambda run: (run / "environment.json").write_text("{"),
    lambda run: (run / "log.jsonl").write_text('{"step": 0, "metrics": {}}\n{"st'),
    lambda run: (run / "log.jsonl").unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_left_out_and_told(
    damage: Callable[[Path], object],
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "runs"
    for seed in (0, 1):
        run = Run(tiny, "sgd", 0.1, seed)
        carry_out(run, prepare([run]), folder, CPU, lambda _: None)
    [broken] = folder.glob("*-seed1-*")
    damage(broken)
    page = report(folder)
    told = capsys.readouterr().out
    assert told.count("Left out: ") == page.words.count("Left out: ") == 1
    assert broken.name in told
    assert "seed" in page.words


@pytest.mark.parametrize("content", ["{", "{}", '{"recipe": 1, "metric": 2}', "[]"])
def test_a_damaged_comparison_leaves_its_runs_to_be_reported(
    content: str, runs_dir: Path
) -> None:
    [path] = runs_dir.glob("compare-*/comparison.json")
    path.write_text(content)
    assert path.parent.name in report(runs_dir).words
    assert "single runs" in report(runs_dir).words


def test_a_comparison_with_a_row_of_another_form_is_left_out(runs_dir: Path) -> None:
    [path] = runs_dir.glob("compare-*/comparison.json")
    content = json.loads(path.read_text())
    del content["rows"][0]["metric"]
    path.write_text(json.dumps(content))
    run = next(runs_dir.glob("vit-*"))
    words = report(runs_dir.parent, str(runs_dir), str(run)).words
    assert "is not as a command writes it" in words


def test_comparisons_of_one_recipe_are_told_apart(tiny: Recipe, runs_dir: Path) -> None:
    shorter = override(tiny, {"steps": "6"})
    runs = plan(shorter, ["adamw", "sgd"], (0, 1), {"adamw": 0.01, "sgd": 1e30})
    compare(runs, prepare(runs), runs_dir, CPU, lambda _: None)
    words = report(runs_dir).words
    for steps in (6, 12):
        assert f"vit-digits: comparison, steps {steps}" in words
        assert f"steps {steps}, batch size 16" in words
    assert re.search(r"finished \d{4}-\d\d-\d\d \d\d:\d\d", words)


def test_runs_folders_of_several_machines_are_one_report(
    tiny: Recipe, tmp_path: Path
) -> None:
    for name, seed in (("m1", 0), ("m2", 1)):
        run = Run(tiny, "sgd", 0.1, seed)
        carry_out(run, prepare([run]), tmp_path / name, CPU, lambda _: None)
    [origin] = (tmp_path / "m2").glob("*/environment.json")
    made = json.loads(origin.read_text())
    origin.write_text(json.dumps({**made, "hardware": "another processor"}))
    words = report(tmp_path, str(tmp_path / "m1"), str(tmp_path / "m2")).words
    assert "another processor (1 run, such as vit-digits-sgd-seed1" in words
    assert "2 single runs" in words


def test_a_report_says_that_it_replaces_another(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(runs_dir)
    assert "in place of" not in capsys.readouterr().out
    report(runs_dir)
    assert "report.html, in place of the one before" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_named(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(runs_dir / "no" / "report.html")
    assert main(["report", "--runs-dir", str(runs_dir), "--output", output]) == 2
    assert output in capsys.readouterr().err
