"""Every block of Python that README and docs show runs.

A comment before a block says what is different about it: `<!-- continues -->` of one
that goes on from the block before it, `<!-- compiled only: REASON -->` of one that
needs what is not here.
"""

import ast
import re

import pytest
from torch import nn
from written import PAGES, ROOT, chains, marks

import saiopt
from saiopt import lab

ALL = [chain for page in PAGES for chain in chains(page)]


def places(found):
    return [pytest.param(c, id=f"{c.page.relative_to(ROOT)}:{c.line}") for c in found]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """What a reader has: a model, an empty folder and the examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    embedding, norm, head = nn.Embedding(16, 64), nn.LayerNorm(64), nn.Linear(64, 16)
    hidden = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    return {"__name__": "page", "model": nn.Sequential(embedding, hidden, norm, head)}


def test_there_is_python_to_run():
    assert len([chain for chain in ALL if chain.is_run]) > 10


@pytest.mark.parametrize("chain", places(c for c in ALL if c.is_run))
def test_a_written_block_runs(chain, reader):
    if "import jax" in chain.blocks[0]:
        pytest.importorskip("jax", reason="needs jax (pip install 'saiopt[jax]')")
    chain.run(reader)


@pytest.mark.parametrize("chain", places(c for c in ALL if not c.is_run))
def test_a_block_that_is_not_run_compiles_and_names_what_there_is(chain):
    for block in chain.blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "saiopt":
                assert {alias.name for alias in node.names} <= set(dir(saiopt))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_stands_before_a_block_is_known(page):
    assert not [
        mark
        for mark in marks(page)
        if mark != "continues" and not re.fullmatch(r"compiled only: \w.*", mark)
    ]


def public_names():
    yield from (f"saiopt.{name}" for name in saiopt.__all__)
    yield from (f"saiopt.lab.{name}" for name in lab.__all__)
    source = ast.parse((ROOT / "src" / "saiopt" / "optax.py").read_text())
    for node in source.body:
        is_named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if is_named and not node.name.startswith("_"):
            yield f"saiopt.optax.{node.name}"


@pytest.mark.parametrize("name", list(public_names()))
def test_a_public_name_stands_on_the_page_of_the_api(name):
    lines = (ROOT / "docs" / "api.md").read_text().splitlines()
    assert f"::: {name}" in lines
