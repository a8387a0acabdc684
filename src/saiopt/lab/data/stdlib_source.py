"""CPython's own library source as text."""

import sysconfig
from pathlib import Path

from saiopt.lab.data.source_text import SourceText, read_sources


def read_stdlib(
    root: Path | None = None, without: frozenset[str] = frozenset()
) -> SourceText:
    """Read the ``.py`` files of the standard library, without its tests.

    Args:
        root: Folder to read; by default the running interpreter's library.
        without: Names of further files or folders to leave out.

    Returns:
        Training and held-out text, as :func:`read_sources` splits it.

    Raises:
        FileNotFoundError: If there are too few source files to train on.
    """
    found = read_sources({"": root or Path(sysconfig.get_path("stdlib"))}, without)
    if len(found.train) < 100_000 or len(found.held_out) < 10_000:
        raise FileNotFoundError(
            "the Python standard library must be installed as .py source files (some "
            f"systems keep them in a separate package), got {len(found.train)} bytes"
        )
    return found
