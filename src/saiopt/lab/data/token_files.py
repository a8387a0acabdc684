"""A text data set as one long row of tokens on the disk."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from saiopt.lab.atomic import alone, write_atomically, write_json
from saiopt.lab.identity import identity_hash

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_AT_ONCE = 1000
_LARGEST_VOCABULARY = 2**16


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Tokens of 16 bits that are read from the disk as they are needed.

    Args:
        path: The file.
        count: Number of tokens.
        fingerprint: Hash of the tokens.
    """

    path: Path
    count: int
    fingerprint: str

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Return stretches of tokens.

        Args:
            starts: First tokens, shape (n,), int64.
            length: Of a stretch.

        Returns:
            Shape (n, length), int64.
        """
        tokens = np.memmap(self.path, dtype="<u2", mode="r")
        rows = [tokens[i : i + length].astype(np.int64) for i in starts.tolist()]
        return torch.from_numpy(np.stack(rows))


def tokenized(
    table: "Dataset",
    encode: Callable[[list[str]], Sequence[Sequence[int]]],
    separator: int,
    key: object,
    folder: Path,
) -> TokenFile:
    """Write a table's texts as tokens, or use the file that an earlier call wrote.

    Processes that ask at the same time wait for the one that writes.

    Args:
        table: With a column ``text``.
        encode: Makes tokens below 65,536 of texts.
        separator: Token after every text.
        key: JSON types that say which table and which tokens these are.
        folder: Where the file is kept; it needs two bytes per token.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tokens-{identity_hash(key)}.bin"
    about = path.with_suffix(".json")
    with alone(path.with_suffix(".lock")):
        if not about.exists():
            write_json(about, _write(path, _chunks(table, encode, separator)))
    fingerprint = json.loads(about.read_text())
    return TokenFile(path, path.stat().st_size // 2, fingerprint)


def _write(path: Path, chunks: Iterable[bytes]) -> str:
    """Write chunks; return the hash of what was written."""
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)

    write_atomically(path, write)
    return digest.hexdigest()[:16]


def _chunks(
    table: "Dataset",
    encode: Callable[[list[str]], Sequence[Sequence[int]]],
    separator: int,
) -> Iterator[bytes]:
    for rows in table.iter(_ROWS_AT_ONCE):
        flat: list[int] = []
        for tokens in encode(rows["text"]):  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]
            flat += [*tokens, separator]
        if flat and max(flat) >= _LARGEST_VOCABULARY:
            raise ValueError(
                f"tokens must be below {_LARGEST_VOCABULARY}, got {max(flat)}"
            )
        yield np.asarray(flat, dtype="<u2").tobytes()
