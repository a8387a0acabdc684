import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saiopt.update import library

LOAD = "from saiopt.update import library; print(library.load())"
NEEDS_COMPILER = pytest.mark.skipif(
    isinstance(library.load(), str), reason=f"no kernel: {library.load()}"
)


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


@NEEDS_COMPILER
def test_processes_that_compile_at_once_leave_one_library(tmp_path):
    processes = [start(LOAD, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    for process in processes:
        assert str(tmp_path) in output(process)
    assert len(list((tmp_path / "saiopt").iterdir())) == 1


@NEEDS_COMPILER
def test_a_cache_that_cannot_be_written_is_replaced_for_a_moment(tmp_path):
    occupied = tmp_path / "file"
    occupied.touch()
    process = start(LOAD, XDG_CACHE_HOME=str(occupied), TMPDIR=str(tmp_path))
    assert str(tmp_path / "saiopt-") in output(process)
    assert list(tmp_path.iterdir()) == [occupied]


HOMELESS = """
import pathlib
def expanduser(path):
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.expanduser = expanduser
"""


@NEEDS_COMPILER
def test_a_user_without_a_home_has_no_cache(tmp_path):
    process = start(HOMELESS + LOAD, XDG_CACHE_HOME="", TMPDIR=str(tmp_path))
    assert str(tmp_path / "saiopt-") in output(process)


STEP = """
import torch
from saiopt import SGDSaI
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.tensor([1.0, 2.0, 4.0])
SGDSaI([param]).step()
print(param.sum().item() < 3)
try:
    SGDSaI([param], fused=True).step()
except RuntimeError as error:
    print(error)
"""


def test_without_a_compiler_the_step_is_taken_and_fused_is_refused(tmp_path):
    process = start(STEP, PATH="", CC="", XDG_CACHE_HOME=str(tmp_path))
    moved, refused = output(process).splitlines()
    assert moved == "True"
    assert refused == (
        "fused must be False or None where there is no C compiler (none of $CC, cc, "
        "gcc and clang), got True"
    )


def test_a_compiler_that_fails_is_told_in_one_sentence(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    process = start(LOAD, CC=str(compiler), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert output(process) == f"{compiler} failed: no such header"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_kernel_compiles_without_a_warning(tmp_path):
    source = Path(library.__file__).with_name("kernel.c")
    flags = [*library.FLAGS, "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    run = subprocess.run(
        ["cc", *flags, str(source), "-o", str(tmp_path / "kernel.so")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
