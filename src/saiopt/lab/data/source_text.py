"""The Python sources below some folders as text, in the same order on every machine."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

_TESTS = frozenset({"test", "tests", "idle_test"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})
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


def read_sources(
    roots: Mapping[str, Path], without: Collection[str] = frozenset()
) -> SourceText:
    """Read the ``.py`` files below some folders, without their tests.

    A file is a test where a folder above it, within its root, is named ``test``,
    ``tests`` or ``idle_test``. What is installed below a root is no part of it either.
    A file is held out by the hash of its root's name and its relative path, so that
    another version holds out the same files as far as it has them.

    Args:
        roots: Folder by the name that its files' paths begin with, "" for none.
        without: Names of further files or folders to leave out.

    Returns:
        Training and held-out text, files in the order of their names.
    """
    left_out = _TESTS | _INSTALLED | set(without)
    files = {
        PurePosixPath(name, relative).as_posix(): root / relative
        for name, root in roots.items()
        for relative in _relative_paths(root)
        if not left_out.intersection(relative.parts)
    }
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for name in sorted(files):
        parts[is_held_out(name)].append(files[name].read_bytes())
    train, held_out = (b"\n".join(parts[side]) for side in (False, True))
    digest = hashlib.sha256(b"%d:" % len(train))
    digest.update(train)
    digest.update(held_out)
    return SourceText(train, held_out, digest.hexdigest()[:16])


def _relative_paths(root: Path) -> list[Path]:
    return [path.relative_to(root) for path in root.rglob("*.py")]


def is_held_out(name: str) -> bool:
    """Decide by its name alone whether a part of a text is held out.

    Args:
        name: Such as a file's relative path.

    Returns:
        Whether it belongs to the tenth that training never sees.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32
