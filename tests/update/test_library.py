import json
import os
import shlex
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
    cache = str(tmp_path / "cache")
    process = start(LOAD, CC=str(compiler), PATH="", XDG_CACHE_HOME=cache)
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


def test_every_source_is_part_of_the_name():
    folder = Path(library.__file__).parent
    assert {path.name for path in folder.glob("*.[ch]")} == set(library.SOURCES)


# Every request is answered by a process of its own, which has loaded nothing before.
SERVER = """
import json, os, signal, sys, tempfile
from saiopt.update import library
for line in sys.stdin:
    if os.fork() == 0:
        signal.alarm(60)  # One that waits for ever fails.
        os.dup2(os.pipe()[0], 0)  # Nobody answers.
        request = json.loads(line)
        os.environ.update(request["environment"])
        tempfile.tempdir = None  # torch has asked for it.
        told = []
        exec(request["code"], {"library": library, "told": told})
        print(json.dumps([str(library.load()), told]), flush=True)
        os._exit(0)
    print(json.dumps(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    quiet = "ignore:This process:DeprecationWarning"
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-W", quiet, "-c", SERVER],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):

        def answer(code, environment):
            request = {"code": code, "environment": environment}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
            if isinstance(reply, int):
                pytest.fail(f"status {reply}: {errors.read_text()[-2000:]}")
            assert json.loads(process.stdout.readline()) == 0
            return reply

        yield answer
        process.stdin.close()


def built(source, path):
    flags = ["-shared", "-fPIC", "-x", "c", "-"]
    command = [shutil.which("cc"), *flags, "-o", str(path)]
    subprocess.run(command, input=source.encode(), check=True)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return built("int whole(void) { return 1; }", tmp_path_factory.mktemp("c") / "so")


def script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\nPATH=/usr/bin:/bin\n" + text)
    path.chmod(0o755)
    return path


class Place:
    """A cache, a temporary folder and a compiler that copies a library."""

    def __init__(self, tmp_path, server, whole):
        self.folder = tmp_path
        self.cache = tmp_path / "home" / "saiopt"
        self.moment = tmp_path / "moment"
        self.moment.mkdir()
        self.programs = tmp_path / "programs"
        self.programs.mkdir()
        self.log = tmp_path / "log"
        self.whole = whole
        self.compiler = script(tmp_path / "copying", self.copying())
        self.server = server
        self.told = []

    def copying(self, what=None):
        return (
            f'echo "$@" >> {self.log}\n'
            'while [ "$1" != -o ]; do shift; done\n'
            f'cp {what or self.whole} "$2"\n'
        )

    def environment(self, **changes):
        return {
            "XDG_CACHE_HOME": str(self.cache.parent),
            "TMPDIR": str(self.moment),
            "CC": str(self.compiler),
            "PATH": str(self.programs),
            **changes,
        }

    def load(self, code="", **changes):
        loaded, self.told = self.server(code, self.environment(**changes))
        return loaded

    def kept(self):
        (path,) = self.cache.iterdir()
        return path

    def starts(self):
        if not self.log.exists():
            return []
        return self.log.read_text(errors="replace").splitlines()

    def is_clean(self):
        return not list(self.moment.iterdir())


@pytest.fixture
def place(tmp_path, server, whole):
    return Place(tmp_path, server, whole)


def wrapper(place, path):
    return script(path, f'echo wrapper >> {place.log}\nexec "$@"\n')


@pytest.mark.parametrize("name", ["ccache", "my tools/ccache"])
def test_the_words_of_cc_are_obeyed(place, name):
    words = [str(wrapper(place, place.folder / name)), str(place.compiler), "-m64"]
    assert str(place.cache) in place.load(CC=shlex.join(words))
    wrapped, copied = place.starts()
    assert wrapped == "wrapper"
    assert copied.startswith("-m64 ")


def test_the_words_of_cc_need_not_be_text(place):
    assert str(place.cache) in place.load(CC=f"{place.compiler} -DNAME=\udcff")
    assert len(place.starts()) == 1


def test_a_quotation_without_an_end_hides_no_other_compiler(place):
    program = wrapper(place, place.folder / "ccache")
    loaded = place.load(CC=f"{program} 'cc")
    assert loaded.startswith(f"{program} 'cc failed: ")
    script(place.programs / "cc", place.copying())
    assert str(place.cache) in place.load(CC=f"{program} 'cc")


def test_a_path_of_a_compiler_may_have_spaces(place):
    compiler = script(place.folder / "my tools" / "cc", place.copying())
    assert str(place.cache) in place.load(CC=str(compiler))


def test_messages_that_are_not_utf_8_are_told(place):
    compiler = script(place.folder / "cc", "printf 'kein \\374bel' >&2\nexit 1\n")
    assert place.load(CC=str(compiler)) == f"{compiler} failed: kein \ufffdbel"


ODD_PROCESSOR = """
def read_text(path, encoding="utf-8", errors="strict"):
    return b"model name: caf\\xe9".decode(encoding, errors)
library.Path.read_text = read_text
"""


def test_the_name_of_a_processor_need_not_be_utf_8(place):
    assert str(place.cache) in place.load(ODD_PROCESSOR)


FUSED = """
import torch
from saiopt import SGDSaI
for fused in (True, False):
    param = torch.nn.Parameter(torch.ones(200_000))
    param.grad = torch.linspace(-1, 1, 200_000)
    torch.set_num_threads(3)
    SGDSaI([param], fused=fused, foreach=False).step()
    told.append(param.sum().item())
"""


def test_a_compiler_without_openmp_builds_a_kernel_of_one_thread(place):
    refusing = f"""
        echo "$@" >> {place.log}
        case " $* " in *" -fopenmp "*)
            echo "clang: error: unsupported option '-fopenmp'" >&2; exit 1;;
        esac
        exec {shutil.which("cc")} "$@" -O1
    """
    compiler = script(place.folder / "clang", refusing)
    assert str(place.cache) in place.load(FUSED, CC=str(compiler))
    fused, reference = place.told
    assert fused == pytest.approx(reference, rel=1e-6)
    assert "libgomp" not in place.starts()[-1]


def test_the_flags_of_the_fastest_kernel_are_tried_first(place):
    failing = f'echo "$@" >> {place.log}\nexit 1\n'
    compiler = script(place.folder / "cc", failing)
    place.load("library._processor = lambda: 'this one'", CC=str(compiler))
    tried = [
        ("-march=native" in start, "-fopenmp" in start) for start in place.starts()
    ]
    assert tried == [(True, True), (False, True), (True, False), (False, False)]


BROKEN = {
    "fails": "echo 'no such header' >&2\nexit 1\n",
    "writes nothing": "exit 0\n",
    "writes garbage": 'while [ "$1" != -o ]; do shift; done\necho garbage > "$2"\n',
    "waits for input": "read answer && exit 0\nexit 1\n",
    "does not end": "exec sleep 60\n",
}


@pytest.mark.parametrize("broken", [*BROKEN, "is no program", "is not there"])
def test_a_broken_compiler_hides_no_other(place, broken):
    script(place.programs / "cc", place.copying())
    compiler = place.folder / "broken"
    if broken == "is no program":
        compiler.write_text("\x7fELF")
        compiler.chmod(0o755)
    elif broken != "is not there":
        script(compiler, f"echo broken >> {place.log}\n{BROKEN[broken]}")
    short = "library._TIMEOUT_SECONDS = 0.3" if broken == "does not end" else ""
    for _ in range(2):
        assert str(place.cache) in place.load(short, CC=str(compiler))
    # The second process has not tried again.
    assert place.starts()[-1] != "broken"
    assert sum(start != "broken" for start in place.starts()) == 1


def test_what_each_compiler_said_is_told_shortly(place):
    long = "x" * 500
    compilers = {
        "first": "echo 'no such header' >&2\nexit 1\n",
        "cc": "printf 'k.c:1: error: no math.h\\nterminated.\\n' >&2\nexit 1\n",
        "gcc": f"echo {long} >&2\nexit 1\n",
        "clang": "exit 1\n",
    }
    paths = [script(place.programs / name, text) for name, text in compilers.items()]
    said = ("no such header", "k.c:1: error: no math.h", long[:200], "no message")
    assert place.load(CC="first") == "; ".join(
        f"{path} failed: {line}" for path, line in zip(paths, said, strict=True)
    )
