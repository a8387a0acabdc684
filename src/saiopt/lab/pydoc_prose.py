"""The English prose of ``pydoc``'s topics, which every CPython carries."""

import hashlib
import importlib

from saiopt.lab.stdlib_source import SourceText, is_held_out


def read_prose() -> SourceText:
    """Read the language reference that ``help()`` shows, split by whole topics.

    Returns:
        Training and held-out text.

    Raises:
        FileNotFoundError: If this Python comes without the topics.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise FileNotFoundError(
            "the Python standard library must have pydoc_data.topics (some systems "
            "keep it in a separate package), got none"
        ) from error
    parts: dict[bool, list[str]] = {True: [], False: []}
    for name in sorted(topics):
        parts[is_held_out(name)].append(topics[name])
    train, held_out = ("\n".join(parts[side]).encode() for side in (False, True))
    digest = hashlib.sha256(b"%d:" % len(train) + train + held_out).hexdigest()
    return SourceText(train, held_out, digest[:16])
