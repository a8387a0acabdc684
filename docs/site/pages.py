"""Which files of the repository the site has, each at its place: links stay right."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "docs/*.md",
    "studies/README.md",
    "studies/*/README.md",
)
ASSETS = ("docs/site/*.css", "docs/site/*.js")
_LINK = re.compile(r"\]\(([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages and what they link to in the place of what lies in docs.

    Args:
        files: of docs and of the theme.
        config: the site's.

    Returns:
        The pages, pictures, rows and scripts, and the theme's files.
    """
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = _found(PAGES)
    for path in sorted({*pages, *_found(ASSETS), *_linked(pages)}):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def _found(patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in ROOT.glob(pattern)]


def _linked(pages: list[Path]) -> set[Path]:
    """Return the files that pages link to; a page that is none of them is none here."""
    targets = {
        (page.parent / target).resolve()
        for page in pages
        for target in _LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target
    }
    return {path for path in targets if path.is_file() and path.suffix != ".md"}
