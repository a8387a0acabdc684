"""Every command that README and docs tell a reader to type can be read."""

import re
import shlex
from pathlib import Path

import pytest

from saiopt.cli.parsing import parse

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "studies").rglob("README.md")),
    ROOT / "benchmarks" / "README.md",
]
_BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^\$ |^| -m )saiopt (.*)$", re.MULTILINE)


def commands():
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text()):
            for line in _COMMAND.findall(block.replace("\\\n", " ")):
                name = page.relative_to(ROOT)
                yield pytest.param(line, id=f"{name}: {' '.join(line.split())}")


def test_there_are_commands_to_read():
    assert len(list(commands())) > 30


@pytest.mark.parametrize("line", list(commands()))
def test_a_written_command_is_read(line):
    words = shlex.split(line, comments=True)
    if words == ["--version"]:
        return
    # Files of the reader's own are opened when the command runs.
    parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [
        target
        for target in targets
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing
