"""A text data set that takes its time, so that two readers of it meet."""

import time
from pathlib import Path
from queue import Queue

from saiopt.lab.data.token_files import TokenFile, tokenized

CHUNKS = 8


class SlowTable:
    """Some chunks of equal texts, each a number."""

    def iter(self, rows: int):
        for chunk in range(CHUNKS):
            time.sleep(0.1)
            yield {"text": [str(chunk + 1)] * rows}


def encode(texts: list[str]) -> list[list[int]]:
    return [[int(text)] * 50 for text in texts]


def ask(folder: Path, answers: "Queue[TokenFile]") -> None:
    answers.put(tokenized(SlowTable(), encode, 0, "key", folder))
