import json
import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from saiopt.lab.data.source_text import SourceText
from saiopt.lab.optimizers import OPTIMIZERS, build_optimizer
from saiopt.lab.recipe import override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.training import checkpoint
from saiopt.lab.training.outcome import carry_out
from saiopt.lab.training.run import Run

FOLDER = Path(__file__).parents[3] / "studies" / "one_state_size"
TINY = {
    "task.n_embd": "16",
    "task.n_layer": "1",
    "task.n_head": "2",
    "task.context": "8",
    "task.held_out_examples": "4",
    "batch_size": "2",
    "steps": "20",
    "eval_every": "10",
    "checkpoint_every": "5",
}
CPU = torch.device("cpu")
BETAS = ("betas=(0.9, 0.95)", "betas=(0.9, 0.99)")


@pytest.fixture(scope="module")
def study():
    known, path, modules = dict(OPTIMIZERS), list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    spec = spec_from_file_location("one_state_size", FOLDER / "study.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    OPTIMIZERS.clear()
    OPTIMIZERS.update(known)
    sys.path[:] = path
    for name in {"one_state_size", "drift", "throughout"} - modules:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def few_sources(monkeypatch):
    train = bytes(i * i % 251 for i in range(4000))
    text = SourceText(train, train[:400], "few")
    monkeypatch.setattr(
        "saiopt.lab.data.package_source.read_packages", lambda packages: text
    )


@pytest.fixture
def run_study(study, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        settings = [f"{name}={value}" for name, value in TINY.items()]
        out = ["--out", str(tmp_path), "--runs-dir", str(tmp_path / "runs")]
        words = ["study.py", "--workers", "1", *out, *arguments, "--set", *settings]
        monkeypatch.setattr(sys, "argv", words)
        study.main()
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        return list(map(json.loads, lines)), capsys.readouterr().out

    return run


def of_length(rows, steps):
    return [row for row in rows if row["labels"]["steps"] == steps]


def test_a_tenth_is_tuned_first_and_the_whole_run_takes_half_of_its_best(run_study):
    size = ("--recipes", "gpt-packages-3m", "--optimizers", "adamw-by-role")
    rows, text = run_study(*size, "--tune-only")
    assert rows == of_length(rows, 2)
    assert {row["seed"] for row in rows} == {0}
    assert {row["labels"]["at"] for row in rows} == set(BETAS)
    assert "a tenth: " in text
    assert "whole" not in text
    best = min(rows, key=lambda row: (row["loss"], row["lr"]))
    tuned = len(rows)
    rows, text = run_study(*size)
    [row] = of_length(rows, 20)
    assert (len(rows), row["seed"]) == (tuned + 1, 1)
    assert row["lr"] == pytest.approx(best["lr"] / 2)
    assert row["labels"]["at"] == best["labels"]["at"]
    assert [step for step, _ in row["curve"]] == [0, 10, 20]
    assert "whole: " in text


def test_the_smaller_size_has_all_optimizers_a_figure_and_drifts(run_study, tmp_path):
    rows, text = run_study("--recipes", "gpt-packages-3m")
    whole = {row["optimizer"]: row for row in of_length(rows, 20)}
    assert list(whole) == [
        "adamw-by-role",
        "muon-adamw",
        "sgdsai-orthogonal",
        "sgdsai-factored",
        "factored_throughout",
    ]
    factored, control = whole["sgdsai-factored"], whole["factored_throughout"]
    assert factored["lr"] == control["lr"]
    # So short a run is measured to its end anyway.
    assert factored["loss"] == control["loss"]
    assert {name for name, row in whole.items() if "drift" in row} == {
        "sgdsai-orthogonal",
        "sgdsai-factored",
    }
    assert factored["drift"].keys() == {"tied", "embedding", "vector", "hidden"}
    assert whole["sgdsai-orthogonal"]["drift"].keys() == {
        "tied",
        "embedding",
        "vector",
    }
    for drift in factored["drift"].values():
        assert drift["whole"] >= drift["within"] >= 0
    assert (tmp_path / "curves_gpt-packages-3m.png").stat().st_size > 10_000
    for words in (
        "drift of hidden",
        "sgdsai-orthogonal over adamw-by-role",
        "factored_throughout over sgdsai-factored",
    ):
        assert words in text
    again, repeated = run_study("--recipes", "gpt-packages-3m")
    assert again == rows
    assert repeated == text[text.index("gpt-packages-3m  adamw-by-role") :]


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.05], "+0.0500 (n=1) ahead"),
        ([-0.05], "-0.0500 (n=1) behind"),
        ([0.02], "+0.0200 (n=1) open"),
        ([0.05, 0.03], "n=2) ahead"),
        ([0.01, 0.011, 0.012], "n=3) better"),
        ([], "no pair (1 diverged)"),
    ],
)
def test_a_margin_judges_few_seeds_and_an_interval_more(study, gains, words):
    pairing = study.Pairing("gpt-packages-3m", "a", "b", gains, int(not gains))
    [verdict] = study.corrected_verdicts([pairing])
    assert study.judgement(pairing, verdict).endswith(words)


def test_the_larger_size_has_three(study):
    assert study.optimizers_on(get_recipe("gpt-packages-10m")) == study.ON_BOTH


@pytest.mark.parametrize("name", ["gpt-packages-3m", "gpt-packages-10m"])
def test_the_recipes_have_the_rates_from_which_the_study_begins(study, name):
    recipe = get_recipe(name)
    for optimizer in study.TRANSFERS:
        known = "adamw" if optimizer == "adamw-by-role" else optimizer
        begun = study.start(recipe, optimizer)
        assert recipe.lrs[known] == pytest.approx(begun * study.LONGER)


def test_rates_fall_with_the_width_as_the_rule_says(study):
    wide = override(get_recipe("gpt-packages-10m"), {"task.n_embd": "2000"})
    # 2e-3 and 2e-2 at a width of 128.
    assert study.start(wide, "adamw-by-role") == 1e-4
    assert study.start(wide, "sgdsai-orthogonal") == 5e-3


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ({}, [0.01, 0.02, 0.05]),
        ({0.01: 1.0, 0.02: 2.0}, [0.01, 0.02, 0.05]),
        ({0.01: 2.0, 0.02: 1.0, 0.05: 2.0}, [0.01, 0.02, 0.05]),
        ({0.01: 1.0, 0.02: 2.0, 0.05: 3.0}, [0.005, 0.01, 0.02, 0.05]),
        ({0.01: 3.0, 0.02: 2.0, 0.05: 1.0}, [0.01, 0.02, 0.05, 0.1]),
        # All of them diverged.
        (
            dict.fromkeys([0.001, 0.002, 0.005, 0.01, 0.02, 0.05], math.inf),
            [0.001, 0.002, 0.005, 0.01, 0.02, 0.05],
        ),
    ],
)
def test_a_grid_grows_while_its_best_is_at_an_end(study, scores, found):
    assert study.rates(scores, 0.02) == found


def test_the_scales_of_the_first_steps_are_those_that_the_run_had(study, tmp_path):
    drift = sys.modules["drift"]
    recipe = override(get_recipe("gpt-packages-3m"), TINY)
    run, task = Run(recipe, "sgdsai-factored", 0.01, 3), recipe.task.load()

    def stop(progress):
        if progress.step == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(run, task, tmp_path, CPU, stop)
    [path] = tmp_path.glob("*/checkpoint.pt")
    model = task.build_model(3)
    optimizer = build_optimizer(run.optimizer, model, run.lr, run.weight_decay, 3)
    assert checkpoint.load(path, model, optimizer).step == 15
    had = drift._measured_scales(model, optimizer)
    found = drift._scales_after(run, task, task.build_model(3), range(15))
    assert found.keys() == had.keys()
    for name, scale in had.items():
        assert torch.equal(found[name], scale)
    [param] = [p for p in model.parameters() if p.shape == (16, 64)]
    state = optimizer.state[param]
    whole = state["scale"] * state["row_scale"][:, None] * state["column_scale"]
    [name] = [n for n, p in model.named_parameters() if p is param]
    assert torch.equal(had[name], whole)


def test_drift_counts_doublings_and_what_a_mean_does_not_explain(study):
    drift = sys.modules["drift"]
    roles = {"a": "hidden", "b": "hidden", "c": "vector"}
    ones = {"a": torch.ones(2, 2), "b": torch.ones(4, 1), "c": torch.tensor(1.0)}
    last = {
        "a": torch.full((2, 2), 2.0),
        "b": torch.tensor([[0.5], [0.5], [2.0], [2.0]]),
        "c": torch.tensor(8.0),
    }
    found = drift.drifts_by_role(roles, ones, last)
    assert found == {
        "hidden": drift.Drift(1.0, round(math.sqrt(0.5), 4)),
        "vector": drift.Drift(3.0, 0.0),
    }
