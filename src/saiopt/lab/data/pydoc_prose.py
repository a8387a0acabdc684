"""The English prose of ``pydoc``'s topics, which every CPython carries."""

import hashlib
import importlib

from saiopt.lab.data.source_text import SourceText, is_held_out

# Shorter lines, such as a closing bracket, are no sign of common text.
_TELLING_LENGTH = 16


def read_prose() -> SourceText:
    """Read the language reference that ``help()`` shows, split by whole topics.

    Topics contain each other: ``class`` is also a part of ``compound``. So each side
    has a paragraph once, and training has none that shares a line with the other side.

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
    # Dictionaries, as sets that keep their order.
    parts: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for name in sorted(topics):
        parts[is_held_out(name)].update(dict.fromkeys(topics[name].split("\n\n")))
    known = {line for part in parts[True] for line in _telling_lines(part)}
    unseen = [part for part in parts[False] if known.isdisjoint(_telling_lines(part))]
    train, held_out = ("\n\n".join(side).encode() for side in (unseen, parts[True]))
    digest = hashlib.sha256(b"%d:" % len(train) + train + held_out).hexdigest()
    return SourceText(train, held_out, digest[:16])


def _telling_lines(paragraph: str) -> set[str]:
    lines = (line.strip() for line in paragraph.splitlines())
    return {line for line in lines if len(line) >= _TELLING_LENGTH}
