import json
import subprocess
import sys
from io import StringIO

import pytest
import torch
from models import TinyTransformer, next_token_loss, token_batches
from rich.console import Console
from torch import nn

from saiopt.lab.model_memory import report as report_module
from saiopt.lab.model_memory.report import (
    as_json,
    optimizer_factory,
    published,
    report_memory,
)
from saiopt.lab.model_memory.table import renderables
from saiopt.lab.optimizers import (
    OPTIMIZERS,
    OptimizerSpec,
    set_mode,
    state_bytes,
    variants,
)
from saiopt.memory import estimate
from saiopt.optimizer.options import STATE_DTYPES

GIB = 2**30


@pytest.fixture(scope="module")
def published_models():
    return report_memory(
        ["gpt2-xl", "llama2-7b"],
        optimizers=["sgd", "sgdsai"],
        state_dtypes=["float32"],
    )


def test_the_papers_figure_for_gpt2_xl_is_the_allocators_blocks(published_models):
    for row in published_models[0].rows:
        assert round(row.estimate.state.block_bytes / GIB, 2) == 5.93
        assert row.published_gb == 5.93
        assert round(row.estimate.state.tensor_bytes / GIB, 2) == 5.80


def test_the_papers_figure_for_llama2_7b_is_two_per_mille_above_ours(published_models):
    for row in published_models[1].rows:
        blocks = row.estimate.state.block_bytes / GIB
        assert round(blocks, 2) == 25.10
        assert row.published_gb / blocks == pytest.approx(1.002, abs=5e-4)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_cut_or_wider_than_the_terminal(published_models, width):
    console = Console(width=width, file=StringIO())
    for item in renderables(published_models):
        console.print(item)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "gpt2-xl · GPT2LMHeadModel · 1,557,611,200 parameters in float32" in text
    cells = text.splitlines()[3].split()
    assert " ".join(cells) == "SGDM 5.80 5.80 5.80 17.41 11.90 4.00 5.93 5.93"


@pytest.mark.parametrize("model", ["gpt2-xl", "resnet18"])
def test_rules_by_role_and_muon_fit_the_terminal_beside_the_paper(model):
    names = ["muon", "sgdsai", "sgdsai-orthogonal", "sgdsai-factored"]
    reports = report_memory([model], optimizers=names)
    console = Console(width=80, file=StringIO())
    for item in renderables(reports):
        console.print(item)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    for label in ("Muon + AdamW", "orthogonal float32", "factored int4"):
        assert any(line.startswith(label + " ") for line in lines)
    assert any(line.startswith("orthogonal, factored: SGD-SaI") for line in lines)


@pytest.mark.parametrize(
    ("state_dtype", "most"),
    [("float32", 4.02), ("bfloat16", 2.02), ("int8", 1.09), ("int4", 0.60)],
)
@pytest.mark.parametrize("name", ["sgdsai-orthogonal", "sgdsai-factored"])
def test_one_state_of_gpt2_takes_its_bytes(name, state_dtype, most):
    (report,) = report_memory(["gpt2"], optimizers=[name], state_dtypes=[state_dtype])
    assert report.rows[0].estimate.state_bytes_per_parameter <= most


def test_muon_with_adamw_has_one_state_for_hidden_matrices_and_two_for_the_rest():
    (report,) = report_memory(["gpt2"], optimizers=["muon"])
    hidden = 12 * 12 * 768**2
    rest = 124_439_808 - hidden
    expected = (4 * hidden + 8 * rest) / 124_439_808
    found = report.rows[0].estimate.state_bytes_per_parameter
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_finer_rules_have_shards():
    names = ["sgdsai-orthogonal", "sgdsai-factored"]
    (report,) = report_memory(
        ["gpt2"], optimizers=names, state_dtypes=["int8"], num_shards=4
    )
    for row in report.rows:
        assert row.estimate.state_bytes_per_parameter < 1.12


def test_json_holds_bytes_and_what_the_table_shows(published_models):
    value = json.loads(json.dumps(as_json(published_models)))
    row = value[0]["rows"][0]
    assert row["optimizer"] == "SGDM"
    assert row["estimate"]["state"]["tensor_bytes"] == 1_557_611_200 * 4
    assert row["estimate"]["state_bytes_per_parameter"] == 4.0
    assert row["estimate"]["total_bytes"] == 3 * 1_557_611_200 * 4


def test_the_paper_is_not_beside_another_dtype_or_a_shard():
    for options in ({"dtype": "bfloat16"}, {"num_shards": 2}):
        (report,) = report_memory(["vit-s16"], optimizers=["sgd"], **options)
        assert report.rows[0].published_gb is None


def test_shards_divide_what_a_rank_holds():
    one, eight = (
        report_memory(["llama2-7b"], optimizers=["sgd"], num_shards=n)[0].rows[0]
        for n in (1, 8)
    )
    parts = ("weights", "gradients", "state")
    for part in parts:
        sizes = [getattr(row.estimate, part).tensor_bytes for row in (one, eight)]
        assert sizes[0] == 8 * sizes[1]


def test_a_formula_stands_in_for_a_package_and_says_so(monkeypatch):
    monkeypatch.setattr(OptimizerSpec, "installed", None)
    (report,) = report_memory(["vit-s16"], optimizers=["adam-mini", "prodigy"])
    mini, prodigy = report.rows
    assert mini.note == "Adam-mini by formula, since adam-mini is not installed"
    assert mini.estimate.state_bytes_per_parameter == pytest.approx(4.0, rel=2e-2)
    assert prodigy.estimate.state_bytes_per_parameter == 16.0


def test_a_package_without_a_formula_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(OptimizerSpec, "installed", None)
    (report,) = report_memory(["vit-s16"], optimizers=["schedule-free-adamw"])
    (row,) = report.rows
    assert row.estimate is None
    assert row.note == (
        "schedule-free-adamw does not run, since schedulefree is not installed"
    )


def fussy(model, lr, weight_decay):
    raise RuntimeError("no such layer")


@pytest.fixture
def with_fussy(monkeypatch):
    spec = OptimizerSpec(fussy, {}, "", label="Fussy")
    monkeypatch.setitem(OPTIMIZERS, "fussy", spec)


@pytest.mark.usefixtures("with_fussy")
def test_an_optimizer_that_cannot_train_the_model_leaves_a_note():
    (report,) = report_memory(["vit-s16"], optimizers=["fussy", "sgd"])
    assert report.rows[0].estimate is None
    assert report.rows[0].note == "Fussy does not run on this model: no such layer"
    assert report.rows[1].estimate is not None


@pytest.mark.usefixtures("with_fussy")
def test_a_formula_stands_in_for_a_package_that_fails(monkeypatch):
    def formula(param):
        return [torch.empty_like(param)] * 3

    monkeypatch.setitem(report_module._FORMULAS, "fussy", formula)
    (report,) = report_memory(["vit-s16"], optimizers=["fussy"])
    (row,) = report.rows
    assert row.estimate.state_bytes_per_parameter == 4.0
    assert row.note == (
        "Fussy by formula, since it does not run on this model: no such layer"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, "models must name at least one, got none"),
        ({"optimizers": ["sgdm"]}, "optimizers must be one of sgdsai, .* got sgdm"),
        ({"state_dtypes": ["int2"]}, "state_dtype must be one of float32, .* int2"),
        ({"dtype": "int8"}, "dtype must be one of float32, .* got int8"),
        ({"num_shards": 0}, "shards must be >= 1, got 0"),
    ],
)
def test_bad_input_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message):
        report_memory(**{"models": ["resnet18"], **options})


def test_every_published_model_and_optimizer_is_known():
    from saiopt.lab.model_memory.models import KNOWN_MODELS

    assert set(published()["state_gb"]) <= set(KNOWN_MODELS)
    for figures in published()["state_gb"].values():
        assert set(figures) <= set(OPTIMIZERS)


def test_importing_the_calculator_loads_nothing_heavy():
    room = "saiopt.lab.model_memory"
    code = f"import {room}.report, {room}.table, sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"transformers", "rich", "matplotlib", "tyro"} & set(run.stdout.split())


WHOLE_MODEL = [n for n, spec in OPTIMIZERS.items() if "LoRA only" not in spec.source]
RULES = ("sgdsai-orthogonal", "sgdsai-factored")


def with_grads(model):
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def state_after_two_steps(spec, model):
    optimizer = spec.make(model, 0.01, 0.1, seed=0)
    set_mode(optimizer, training=True)
    for _ in range(2):
        optimizer.step()
    return state_bytes(optimizer)


# Prodigy keeps no copy of a parameter that is all zero, as biases are.
@pytest.mark.parametrize("name", [n for n in WHOLE_MODEL if n != "prodigy"])
def test_what_is_counted_is_what_the_lab_trains_with(name):
    model = TinyTransformer()
    spec = OPTIMIZERS[name]
    found = estimate(model, optimizer_factory(spec, model))
    next_token_loss(model, token_batches(1)[0]).backward()
    assert found.state.tensor_bytes == state_after_two_steps(spec, model)


@pytest.mark.parametrize("name", RULES)
def test_every_dtype_of_the_momentum_is_what_the_lab_trains_with(name):
    for spec in variants(name, STATE_DTYPES).values():
        model = with_grads(TinyTransformer())
        found = estimate(model, optimizer_factory(spec, model))
        assert found.state.tensor_bytes == state_after_two_steps(spec, model)


def gpt2_block():
    return nn.ModuleDict(
        {
            "wte": nn.Embedding(4096, 768),
            "block": nn.ModuleDict(
                {
                    "qkv": nn.Linear(768, 3 * 768),
                    "out": nn.Linear(768, 768),
                    "up": nn.Linear(768, 4 * 768),
                    "down": nn.Linear(4 * 768, 768),
                }
            ),
            "norm": nn.LayerNorm(768),
        }
    )


@pytest.mark.parametrize("name", RULES)
def test_a_block_of_gpt2_takes_the_bytes_of_one_state(name):
    """One of the twelve, really allocated and stepped, with the embeddings cut."""
    model = with_grads(gpt2_block())
    entries = sum(p.numel() for p in model.parameters())
    most = (4.02, 2.02, 1.09, 0.60)
    specs = variants(name, STATE_DTYPES).values()
    for spec, limit in zip(specs, most, strict=True):
        assert state_after_two_steps(spec, model) / entries <= limit


def test_the_parameters_that_stand_in_are_taken_out_again():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    own = list(model.parameters())
    stand_in = nn.Parameter(torch.empty(3, 3, device="meta"))
    optimizer = optimizer_factory(OPTIMIZERS["adamw"], model)([stand_in])
    [group] = optimizer.param_groups
    assert group["params"] == [stand_in]
    assert all(p is q for p, q in zip(model.parameters(), own, strict=True))
    assert model[1].weight is model[0].weight
