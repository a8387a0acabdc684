import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

import saiopt
from saiopt.lab.identity import code_hash, executed
from saiopt.lab.recipes import RECIPES

PACKAGE = Path(saiopt.__file__).parent
# Everything else of the package is the optimizer.
AROUND_THE_OPTIMIZER = {
    "lab",
    "cli",
    "bench",
    "analysis",
    "memory",
    "optax.py",
    "__main__.py",
}
RUN = ("saiopt.lab.training.outcome", "saiopt.lab.recipes.vit_digits")


def file_of(name: str) -> Path:
    """The file of an entry of ``executed``, relative to the package."""
    place = Path(*name.split("."))
    tried = (place.with_suffix(".py"), place / "__init__.py", PACKAGE / name)
    files = (PACKAGE.parent / file for file in tried)
    return next(file for file in files if file.is_file()).relative_to(PACKAGE)


def test_every_file_of_the_optimizer_counts_in_every_run() -> None:
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.*")}
    optimizer = {
        path
        for path in files
        if path.parts[0] not in AROUND_THE_OPTIMIZER
        and path.suffix not in {".pyc", ".typed"}
    }
    assert {path.suffix for path in optimizer} >= {".py", ".c", ".h"}
    counted = {file_of(name) for name in executed(RUN)}
    # Of what only names what others hold nothing may be taken.
    assert {path for path in optimizer if path.name != "__init__.py"} <= counted


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_own_parts_count_and_those_of_others_do_not(name: str) -> None:
    module = RECIPES[name].__module__
    found = executed((module, "saiopt.lab.training.outcome"))
    assert {module, "saiopt.lab.training.loop", "saiopt.lab.schedules"} <= found.keys()
    assert any(key.startswith("saiopt.lab.tasks.") for key in found)
    others = {made.__module__ for made in RECIPES.values()}
    # LoRA adapts another recipe's model, and a larger text takes it over.
    assert len(others & found.keys()) <= 2


def test_what_only_shows_does_not_count() -> None:
    words = ("cli", "bench", "memory", "report", "table", "plot", "progress", "noise")
    found = executed(RUN)
    assert not [name for name in found for word in words if word in name]
    assert not {"saiopt.analysis.figure", "saiopt.analysis.image_grid"} & found.keys()
    assert "saiopt.analysis.gsnr" in found, "it measures"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "saiopt", ignore=ignored))


def edit(folder: Path, pattern: str, change: Callable[[str], str]) -> None:
    for path in folder.rglob(pattern):
        path.write_text(change(path.read_text()))


def test_it_is_the_same_wherever_the_package_lies(copy: Path) -> None:
    assert executed(RUN, copy) == executed(RUN)


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        ("*.py", lambda text: f"# A comment.\n\n{text}\n\n# Another.\n"),
        ("*.py", lambda text: ast.unparse(ast.parse(text))),
        ("*.py", lambda text: text.replace('"""', '"""Once more: ', 1)),
        ("*.py", lambda text: re.sub(r'"""(.|\n)*?"""', "", text, count=1)),
        ("*.[ch]", lambda text: f"/* A\n comment. */\n{text}\n// Another.\n"),
        ("*.[ch]", lambda text: text.replace("\n", "  \n\n").replace(" = ", "  = ")),
        ("*.[ch]", lambda text: re.sub(r"(?s)/\*.*?\*/", "", text)),
    ],
    ids=[
        "comments",
        "formatting",
        "docstrings",
        "no docstrings",
        "comments of C",
        "spaces of C",
        "no comments of C",
    ],
)
def test_what_the_machine_does_not_see_does_not_count(
    copy: Path, pattern: str, change: Callable[[str], str]
) -> None:
    edit(copy, pattern, change)
    assert executed(RUN, copy) == executed(RUN)


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        ("*.py", lambda text: f"{text}\nEDITED = 1\n"),
        ("*.[ch]", lambda text: f"{text}\nint edited = 1;\n"),
    ],
    ids=["Python", "C"],
)
def test_every_edit_of_a_counted_file_counts(
    copy: Path, pattern: str, change: Callable[[str], str]
) -> None:
    edit(copy, pattern, change)
    before, after = executed(RUN), executed(RUN, copy)
    changed = {name for name in before if before[name] != after[name]}
    ours = {name for name in before if file_of(name).match(pattern)}
    assert changed == ours
    assert changed


def test_a_number_a_name_and_an_operator_count(tmp_path: Path) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    texts = ("x = a + 1", "x = a + 2", "x = b + 1", "x = a - 1", "x = a + 1.0", "x = 1")
    seen = set()
    for text in texts:
        (package / "rule.py").write_text(text)
        seen.add(executed(["toy.rule"], package)["toy.rule"])
    assert len(seen) == len(texts)


def test_imports_are_followed_wherever_they_stand(tmp_path: Path) -> None:
    package = tmp_path / "toy"
    sources = {
        "run.py": "import toy.plain\nfrom toy import named\nfrom .sub import thing\n"
        "def f():\n    try:\n        from .sub.lazy import g\n    except OSError: ...\n"
        "if TYPE_CHECKING:\n    from toy import only_types\n"
        "else:\n    import toy.other\n",
        "sub/__init__.py": "from .up import thing",
        "sub/up.py": "from .. import above\nthing = above.thing",
        "sub/lazy.py": "import torch",
        **{f"{name}.py": "" for name in ("plain", "named", "other", "above")},
        **{f"{name}.py": "" for name in ("only_types", "never")},
        "__init__.py": "from .never import nothing",
        "sub/deep/kernel.cu": "int x; // c",
        "elsewhere/kernel.c": "int y;",
    }
    for name, text in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    names = ("run", "plain", "named", "other", "above", "sub", "sub.up", "sub.lazy")
    found = executed(["toy.sub.lazy"], package)
    assert found.keys() == {"toy.sub.lazy", "sub/deep/kernel.cu"}
    assert found["sub/deep/kernel.cu"] == "int x;"
    found = executed(["toy.run"], package)
    assert found.keys() >= {f"toy.{name}" for name in names}
    assert "toy.only_types" not in found


def test_a_users_own_module_counts_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from saiopt.lab.data import digits\nwidth = 64\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "__mp_main__", importlib.import_module("mine"))
    found = executed(["mine"])
    assert "saiopt.lab.data.digits" in found
    assert executed(["__mp_main__"]) == found
    path.write_text("from saiopt.lab.data import digits\nwidth = 256\n")
    assert executed(["mine"]) != found
    monkeypatch.delitem(sys.modules, "mine")


def test_the_hash_says_which_modules_it_is_of() -> None:
    assert code_hash(*RUN) == code_hash(*reversed(RUN))
    assert code_hash(*RUN) != code_hash(RUN[0])
    assert re.fullmatch("[0-9a-f]{8}", code_hash(*RUN))


def train(source: Path, runs_dir: Path) -> dict[str, Any]:
    """Train with the package that lies in a folder, and return what is printed."""
    settings = [*TINY, "--steps", "3", "--runs-dir", str(runs_dir), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "saiopt", "train", "vit-digits", *settings],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source.parent)},
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "reused": "finished before" in done.stderr}


def test_a_run_is_made_again_with_another_rule_and_not_with_another_comment(
    copy: Path, tmp_path: Path
) -> None:
    runs_dir = tmp_path / "runs"
    [path] = [p for p in copy.rglob("*.py") if "\nclass SGDSaI(" in p.read_text()]
    first = train(copy, runs_dir)
    path.write_text(f"# A comment.\n{path.read_text()}")
    again = train(copy, runs_dir)
    assert again == {**first, "reused": True}
    path.write_text(f"{path.read_text()}\nSGDSaI.step = lambda *_: None\n")
    edited = train(copy, runs_dir)
    assert not edited["reused"]
    assert edited["folder"] != first["folder"]
    assert edited["state_bytes"] == 0
    assert len(list(runs_dir.glob("*/result.json"))) == 2
