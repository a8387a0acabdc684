"""CPython's own library source as text, in the same order on every machine."""

import dataclasses
import hashlib
import sysconfig
from pathlib import Path

_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class SourceText:
    """Library source, split by whole files.

    Args:
        train: Text for training.
        held_out: Text of the files that training never sees, though tables of code
            pages repeat each other.
        fingerprint: Hash of both, since the text differs between Python versions.
    """

    train: bytes
    held_out: bytes
    fingerprint: str


def read_stdlib(
    root: Path | None = None, without: frozenset[str] = frozenset()
) -> SourceText:
    """Read the ``.py`` files of the standard library, without its tests.

    A file is held out by the hash of its relative path, so that another Python
    version holds out the same files as far as it has them.

    Args:
        root: Folder to read; by default the running interpreter's library.
        without: Names of further files or folders to leave out.

    Returns:
        Training and held-out text.

    Raises:
        FileNotFoundError: If there are too few source files to train on.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for relative in _source_files(root, _LEFT_OUT | without):
        parts[is_held_out(relative)].append((root / relative).read_bytes())
    train, held_out = (b"\n".join(parts[side]) for side in (False, True))
    if len(train) < 100_000 or len(held_out) < 10_000:
        raise FileNotFoundError(
            "the Python standard library must be installed as .py source files "
            f"(some systems keep them in a separate package), got {len(train)} bytes"
        )
    digest = hashlib.sha256(b"%d:" % len(train) + train + held_out).hexdigest()
    return SourceText(train, held_out, digest[:16])


def _source_files(root: Path, left_out: frozenset[str]) -> list[str]:
    relatives = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(
        path.as_posix() for path in relatives if not left_out.intersection(path.parts)
    )


def is_held_out(name: str) -> bool:
    """Decide by its name alone whether a part of a text is held out.

    Args:
        name: Such as a file's relative path.

    Returns:
        Whether it belongs to the tenth that training never sees.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32
