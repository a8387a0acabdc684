import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saiopt.update import library, prebuilt

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
    out, err = process.communicate(timeout=600)
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
        "gcc and clang), got True for parameter 0 of group 0"
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
    assert {path.name for path in folder.glob("*.[ch]")} == set(prebuilt.SOURCES)


# Every request is answered by a process of its own, which has loaded nothing before.
SERVER = """
import json, os, signal, sys, tempfile
from saiopt.update import library, prebuilt
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


def give_away(path):
    """Make a path another user's, or what comes next to it."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        path.chmod(0o777)


def as_a_folder(path, whole):
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def as_a_pipe(path, whole):
    path.unlink()
    os.mkfifo(path)


def as_a_link(path, target):
    path.unlink()
    path.symlink_to(target)


def with_another_byte(path, whole):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "half a file": lambda path, whole: os.truncate(path, path.stat().st_size // 2),
    "a file without bytes": lambda path, whole: os.truncate(path, 0),
    "garbage": lambda path, whole: path.write_bytes(b"garbage" * 1000),
    "another byte": with_another_byte,
    "zeros to its end": lambda path, whole: [
        os.truncate(path, size) for size in (path.stat().st_size // 2, 100_000)
    ],
    "a folder": as_a_folder,
    "a pipe": as_a_pipe,
    "a dangling link": lambda path, whole: as_a_link(path, "nowhere"),
    "a link": as_a_link,
    "others may write": lambda path, whole: path.chmod(0o666),
    "another user's": lambda path, whole: give_away(path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_built_anew(place, damage):
    place.load()
    DAMAGE[damage](place.kept(), place.whole)
    assert str(place.cache) in place.load()
    assert len(place.starts()) == 2
    assert place.kept().lstat().st_mode & 0o170777 == 0o100600
    assert place.kept().read_bytes() == place.whole.read_bytes()
    assert str(place.cache) in place.load()
    assert len(place.starts()) == 2


@pytest.mark.parametrize("mask", [0o002, 0o000])
def test_a_user_whose_files_others_may_write_to_has_a_cache(place, mask):
    for _ in range(2):
        assert str(place.cache) in place.load(f"import os; os.umask({mask})")
    assert len(place.starts()) == 1


def test_a_library_that_does_not_load_here_makes_room_for_another(place):
    place.load()
    path = place.kept()
    foreign = b"made for another machine"
    digest = hashlib.sha256(foreign).hexdigest()[:20]
    path.unlink()
    foreign_path = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.so")
    foreign_path.write_bytes(foreign)
    foreign_path.chmod(0o600)
    assert str(path) in place.load()
    assert str(path) in place.load()
    assert len(place.starts()) == 2
    assert foreign_path.read_bytes() == foreign


RECORDING = """
import os, pathlib
sync, replace = os.fsync, pathlib.Path.replace
def recording_sync(descriptor):
    told.append(["sync", os.readlink(f"/proc/self/fd/{descriptor}")])
    sync(descriptor)
def recording_replace(path, target):
    told.append(["rename", str(path.resolve())])
    return replace(path, target)
os.fsync, pathlib.Path.replace = recording_sync, recording_replace
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc/self/fd")
def test_a_library_is_on_disk_before_it_has_its_name_and_its_name_after(place):
    place.load(RECORDING)
    assert [event for event, _ in place.told] == ["sync", "rename", "sync"]
    (_, first), (_, renamed), (_, last) = place.told
    assert first == renamed
    assert last == str(place.cache)


LITTLE_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999))"
FULL_CACHE = """
import errno, os
def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")
os.fsync = full
"""


def test_a_full_disk_is_told_in_one_sentence_and_nothing_is_left(place):
    loaded = place.load(LITTLE_ROOM)
    assert loaded.startswith(f"{place.compiler} failed: ")
    assert len(loaded.splitlines()) == 1
    assert not list(place.cache.iterdir())
    assert place.is_clean()


def test_a_cache_on_a_full_disk_is_replaced_for_a_moment(place):
    assert str(place.moment / "saiopt-") in place.load(FULL_CACHE)
    assert not list(place.cache.iterdir())
    assert place.is_clean()


def planted(place):
    """Put a library of somebody else's in the place of ours, under a fitting name."""
    marker = place.folder / "marker"
    source = f"""
        #include <fcntl.h>
        __attribute__((constructor))
        static void run(void) {{ creat("{marker}", 0600); }}
    """
    path = place.kept()
    foreign = built(source, place.folder / "planted.so").read_bytes()
    digest = hashlib.sha256(foreign).hexdigest()[:20]
    for name in (path.name, f"{path.stem.rpartition('-')[0]}-{digest}.so"):
        path.with_name(name).write_bytes(foreign)
        path.with_name(name).chmod(0o600)
    return marker


def behind_a_link(cache):
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to("elsewhere")


SHARED = {
    "others may write": lambda cache: cache.chmod(0o703),
    "the group may write": lambda cache: cache.chmod(0o770),
    "everybody may write, as in /tmp": lambda cache: cache.chmod(0o1777),
    "another user's": give_away,
    "a link": behind_a_link,
}


@pytest.mark.parametrize("shared", SHARED)
def test_a_cache_that_others_may_write_to_is_not_used(place, shared):
    place.load()
    marker = planted(place)
    SHARED[shared](place.cache)
    before = sorted(place.cache.iterdir())
    loaded = place.load()
    assert not marker.exists()
    assert str(place.moment / "saiopt-") in loaded
    assert sorted(place.cache.iterdir()) == before
    assert place.is_clean()


@pytest.mark.parametrize("mode", [0o1777, 0o777])
def test_our_cache_in_a_folder_of_all_is_used(place, mode):
    place.cache.parent.mkdir()
    place.cache.parent.chmod(mode)
    assert str(place.cache) in place.load()
    assert place.cache.stat().st_mode & 0o777 == 0o700


SWAPPING = """
import ctypes, os
load = ctypes.CDLL
def swapping(*args, **kwargs):
    if not os.path.exists(OURS + ".away"):
        os.rename(OURS, OURS + ".away")
        os.rename(THEIRS, OURS)
    return load(*args, **kwargs)
ctypes.CDLL = swapping
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc/self/fd")
def test_what_was_checked_is_what_is_loaded(place):
    place.load()
    theirs = place.folder / "theirs"
    shutil.copytree(place.cache, theirs)
    ours, place.cache = place.cache, theirs
    marker = planted(place)
    place.cache = ours
    place.load(f"OURS, THEIRS = {str(ours)!r}, {str(theirs)!r}" + SWAPPING)
    assert not theirs.exists()
    assert not marker.exists()


def test_without_paths_through_descriptors_the_cache_is_used_all_the_same(place):
    for _ in range(2):
        loaded = place.load("library._DESCRIPTORS = '/nowhere'")
        assert str(place.cache) in loaded
    assert len(place.starts()) == 1


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
    return b"model name: \\xff".decode(encoding, errors)
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


def test_processes_wait_for_the_one_that_compiles(place):
    script(place.compiler, "sleep 2\n" + place.copying())
    processes = [start(LOAD, **place.environment()) for _ in range(2)]
    for process in processes:
        assert str(place.cache) in output(process)
    assert len(place.starts()) == 1
    assert place.is_clean()


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_leaves_no_lock_and_nothing_in_the_cache(place):
    never_done = f"echo $$ > {place.log}\nexec sleep 60\n"
    sleeping = script(place.folder / "sleeping", never_done)
    with start(LOAD, **place.environment(CC=str(sleeping))) as process:
        wait_for(place.log)
        process.kill()
        # The compiler goes on, and has no part in the lock.
        began = time.monotonic()
        assert str(place.cache) in place.load()
        assert time.monotonic() - began < 30
        assert len(list(place.cache.iterdir())) == 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(place.starts()[0]), signal.SIGKILL)


def test_waiting_for_another_process_has_an_end(place):
    place.cache.mkdir(parents=True, mode=0o700)
    descriptor = os.open(place.cache, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        loaded = place.load("library._TIMEOUT_SECONDS = 0.3")
    finally:
        os.close(descriptor)
    assert str(place.cache) in loaded


def test_a_library_that_is_there_is_loaded_without_waiting(place):
    place.load()
    descriptor = os.open(place.cache, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert str(place.cache) in place.load(FULL_CACHE)
    finally:
        os.close(descriptor)


WITHOUT_LOCKS = """
import errno, fcntl
def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


def test_without_locks_the_kernel_is_built_all_the_same(place):
    assert str(place.cache) in place.load(WITHOUT_LOCKS)


def left_behind(path, hours):
    path.mkdir(parents=True, mode=0o700)
    (path / "kernel.so").touch()
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


@pytest.mark.parametrize("is_kept", [False, True], ids=["to build", "kept"])
def test_what_killed_processes_left_in_the_cache_is_removed(place, is_kept):
    if is_kept:
        place.load()
    # An older process may still be at work on a young one.
    left_behind(place.cache / "tmpabcdefgh", 2)
    left_behind(place.cache / "tmp_young_1", 0.5)
    left_behind(place.cache / "datasets", 2)
    loaded = place.load()
    assert {path.name for path in place.cache.iterdir() if path.is_dir()} == {
        "tmp_young_1",
        "datasets",
    }
    assert str(place.cache) in loaded


def test_what_killed_compilers_left_in_the_temporary_folder_is_removed(place):
    left_behind(place.moment / "saiopt-kernel-abcdefgh", 2)
    left_behind(place.moment / "saiopt-kernel-12345678", 0.5)
    left_behind(place.moment / "saiopt-runs", 2)
    place.load()
    assert {path.name for path in place.moment.iterdir()} == {
        "saiopt-kernel-12345678",
        "saiopt-runs",
    }


FORBIDDEN = "no kernel is in the cache and SAIOPT_COMPILE=0 forbids to build one"


def test_compiling_can_be_forbidden(place):
    assert place.load(SAIOPT_COMPILE="0") == FORBIDDEN
    assert place.starts() == []
    assert str(place.cache) in place.load(SAIOPT_COMPILE="1")


@pytest.mark.parametrize("compiles", ["0", "1"])
@pytest.mark.parametrize("compiler", ["the same", "another", "none"])
def test_a_library_that_is_there_needs_no_compiler(place, compiles, compiler):
    place.load()
    failing = script(place.folder / "failing", "exit 1\n")
    changes = {"another": {"CC": str(failing)}, "none": {"CC": ""}}
    loaded = place.load(SAIOPT_COMPILE=compiles, **changes.get(compiler, {}))
    assert str(place.cache) in loaded
    assert len(place.starts()) == 1


def test_a_damaged_library_is_not_loaded_where_compiling_is_forbidden(place):
    place.load()
    os.truncate(place.kept(), place.kept().stat().st_size // 2)
    assert place.load(SAIOPT_COMPILE="0") == FORBIDDEN
    assert len(place.starts()) == 1


@pytest.mark.parametrize("value", ["", "2", "no", "01", "true"])
def test_other_values_of_the_switch_are_refused(place, value):
    assert place.load(SAIOPT_COMPILE=value) == (
        f"there is no kernel (SAIOPT_COMPILE must be 0 or 1, got {value!r})"
    )
    assert place.starts() == []
