import multiprocessing
from pathlib import Path

import numpy as np
from slow_table import CHUNKS, SlowTable, ask, encode

from saiopt.lab.data.token_files import tokenized


def test_processes_that_tokenize_at_once_get_one_whole_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    asking = [context.Process(target=ask, args=(tmp_path, answers)) for _ in range(2)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(60)
    assert [process.exitcode for process in asking] == [0, 0]
    first, second = (answers.get(timeout=120) for _ in asking)
    assert first == second
    tokens = np.fromfile(first.path, "<u2").reshape(CHUNKS, 1000, 51)
    expected = np.arange(1, CHUNKS + 1)[:, None, None]
    assert (tokens[:, :, :50] == expected).all()
    assert not tokens[:, :, 50].any()


def test_only_the_first_call_tokenizes(tmp_path: Path) -> None:
    first = tokenized(SlowTable(), encode, 0, "key", tmp_path)
    assert tokenized(None, encode, 0, "key", tmp_path) == first
