"""The Python that README and docs show."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```python\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
_ALONE = "compiled only: "


class Chain(NamedTuple):
    """Blocks that share their names, the later ones marked so in the page."""

    page: Path
    line: int
    blocks: list[str]
    is_run: bool

    def run(self, names):
        """Run the blocks one after the other, in one module's names."""
        for block in self.blocks:
            exec(compile(block, str(self.page), "exec"), names)


def chains(page):
    """Return a page's blocks of Python, with those that continue them."""
    text, found = page.read_text(), []
    for block in _BLOCK.finditer(text):
        mark, code = block["mark"], block["code"]
        if mark == "continues":
            found[-1].blocks.append(code)
            continue
        line = text.count("\n", 0, block.start("code")) + 1
        is_run = not (mark or "").startswith(_ALONE)
        found.append(Chain(page, line, [code], is_run))
    return found


def marks(page):
    """Return the comments that stand before a page's blocks of Python."""
    return [b["mark"] for b in _BLOCK.finditer(page.read_text()) if b["mark"]]
