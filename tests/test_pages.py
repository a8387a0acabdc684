"""Every page can be found: from the navigation, from the list of studies, by links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUDIES = sorted(ROOT.glob("studies/*/README.md"))
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "studies" / "README.md",
    *STUDIES,
    ROOT / "benchmarks" / "README.md",
]
# Of the repository, not of the site.
NOT_ON_THE_SITE = {"SECURITY.md"}
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = set(re.findall(r"[\w./-]+\.md$", nav, re.MULTILINE))
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert listed == names - NOT_ON_THE_SITE


def test_every_study_is_in_the_list_of_studies():
    text = (ROOT / "studies" / "README.md").read_text()
    listed = set(re.findall(r"\]\((\w+)/README\.md\)", text))
    assert listed == {page.parent.name for page in STUDIES}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []
