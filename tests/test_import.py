import ast
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import saiopt

HEAVY = ("matplotlib", "tyro", "transformers", "rich", "sklearn", "triton")


def modules_after(statement):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_optimizer_needs_torch_and_nothing_heavy():
    loaded = modules_after("from saiopt import SGDSaI")
    assert "saiopt.optimizer" in loaded
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("statement", ["import saiopt", "from saiopt import lab"])
def test_what_is_not_asked_for_is_not_loaded(statement):
    assert not {"torch", *HEAVY} & modules_after(statement)


@pytest.mark.parametrize("name", [*saiopt.__all__, "lab", "analysis", "memory"])
def test_every_public_name_can_be_had_from_the_package(name):
    assert name in dir(saiopt)
    assert getattr(saiopt, name) is not None


def test_the_version_is_that_of_the_distribution():
    assert saiopt.__version__ == version("saiopt")


def test_a_name_that_is_not_there_is_missing():
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        saiopt.nosuch  # noqa: B018


def test_importing_saiopt_brings_no_package_that_torch_does_not():
    roots = [
        {name.partition(".")[0] for name in modules_after(statement)}
        for statement in ("import torch, torch.optim", "from saiopt import SGDSaI")
    ]
    assert roots[1] - roots[0] <= {"saiopt"}


# Distributions whose module has another name.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_every_package_that_is_imported_is_declared():
    source = Path(saiopt.__file__).parent
    roots = {
        name.partition(".")[0]
        for path in source.rglob("*.py")
        for name in imported_modules(path)
    }
    declared = {
        re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        for requirement in requires("saiopt")
    }
    foreign = roots - set(sys.stdlib_module_names) - {"saiopt"}
    names = {DISTRIBUTIONS.get(r, r).lower().replace("_", "-") for r in foreign}
    assert names - declared == set()
