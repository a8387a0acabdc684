import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from saiopt.update import library, prebuilt

ROOT = Path(__file__).parents[2]
ABLE = [
    level
    for level, needed in prebuilt.LEVELS["x86_64"].items()
    if needed <= prebuilt._abilities()
]
HAS_KERNEL = not isinstance(library.load(), str)
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None or not HAS_KERNEL,
    reason="needs Linux and a C compiler called cc",
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    return {path.name: path for path in prebuilt.build(folder)}


# Runs without a compiler, and with no kernel kept from before.
def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env={**os.environ, "PATH": "", "CC": "", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout.strip()


BROUGHT = """
import sys
from pathlib import Path
from saiopt.update import library, prebuilt
if sys.argv[1]:
    prebuilt.DIRECTORY = Path(sys.argv[1])
"""
STEPS = """
import torch
from saiopt import SGDSaI
states = {}
for dtype in (torch.float32, torch.bfloat16):
    for state_dtype in (torch.float32, torch.bfloat16, torch.int8, "int4"):
        for scaling in ("gsnr", "factored", "orthogonal"):
            torch.set_num_threads(2)
            torch.manual_seed(0)
            params = [torch.nn.Parameter(torch.randn(300, 517).to(dtype))]
            given = {"scaling": scaling, "state_dtype": state_dtype, "fused": True}
            optimizer = SGDSaI(params, 1e-2, **given)
            for _ in range(3):
                params[0].grad = torch.randn(300, 517).to(dtype)
                optimizer.step()
            states[dtype, state_dtype, scaling] = [
                params[0].detach(), *optimizer.state[params[0]].values()
            ]
torch.save(states, sys.argv[2])
print(library.load()._name)
"""


def steps(folder, tmp_path, **environment):
    """Return the library that has stepped, and what it has made."""
    output = tmp_path / "states.pt"
    name = run(BROUGHT + STEPS, folder, output, **environment)
    return name, torch.load(output, weights_only=True)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return steps("", tmp_path_factory.mktemp("native"), PATH=os.environ["PATH"])[1]


@pytest.mark.parametrize("level", ABLE)
def test_a_kernel_for_many_processors_steps_as_one_for_this(
    level, kernels, native, tmp_path
):
    folder = tmp_path / "brought"
    folder.mkdir()
    path = kernels[prebuilt._name(level)]
    shutil.copy(path, folder)
    name, states = steps(folder, tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert Path(name) == folder / path.name
    # The older ones round a product before they add it.
    fuses = "fma" in prebuilt.LEVELS["x86_64"][level]
    exactly = {"rtol": 0.0, "atol": 0.0}
    for key, expected in native.items():
        is_coded = key[1] in (torch.int8, "int4")
        if fuses or not (is_coded or torch.bfloat16 in key):
            near = exactly if fuses else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(states[key], expected, **near)


def test_the_fastest_that_the_processor_can_run_is_taken(kernels, monkeypatch):
    monkeypatch.setattr(prebuilt, "DIRECTORY", next(iter(kernels.values())).parent)
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: "x86_64")
    levels = prebuilt.LEVELS["x86_64"]
    for able in levels.values():
        monkeypatch.setattr(prebuilt, "_abilities", lambda able=able: able | {"mmx"})
        best = next(level for level, needed in levels.items() if needed <= able)
        assert levels[best] == able
        assert prebuilt.choose() == kernels[prebuilt._name(best)]
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: "riscv64")
    assert prebuilt.choose() is None


def test_a_kernel_of_other_sources_or_that_does_not_load_is_not_taken(
    kernels, tmp_path
):
    for path in kernels.values():
        level = path.stem.rpartition("-")[0]
        (tmp_path / f"{level}-{'0' * 20}.so").write_bytes(path.read_bytes())
    load = BROUGHT + "print(prebuilt.choose(), library.load())"
    said = run(load, tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert said == "None there is no C compiler (none of $CC, cc, gcc and clang)"
    for name in kernels:
        (tmp_path / name).write_bytes(b"")
    said = run(load, tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert str(tmp_path) in said
    assert said.endswith("there is no C compiler (none of $CC, cc, gcc and clang)")


def test_a_machine_that_is_not_known_is_told(tmp_path):
    with pytest.raises(ValueError, match="machine must be one of x86_64, aarch64"):
        prebuilt.build(tmp_path, machine="riscv64")


def built_wheel(folder, **environment):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
        timeout=600,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


QUICK_START = """
import sys
sys.modules["numpy"] = None
import torch
from saiopt import SGDSaI, decay_groups
from saiopt.update import library
model = torch.nn.Linear(80, 80)
optimizer = SGDSaI(decay_groups(model, 0.1), lr=1e-2, state_dtype="int4")
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(4, 80)).square().mean().backward()
    optimizer.step()
print(getattr(library.load(), "_name", library.load()))
"""


def test_wheels_have_the_kernels_or_compile_them(tmp_path):
    # torch says that there is no NumPy.
    quick_start = "import warnings; warnings.simplefilter('ignore')" + QUICK_START
    plain = built_wheel(tmp_path / "plain")
    assert plain.name.endswith("-py3-none-any.whl")
    full = built_wheel(tmp_path / "full", SAIOPT_PREBUILT="1")
    assert f"-py3-none-linux_{os.uname().machine}" in full.name
    for wheel in (plain, full):
        target = wheel.parent / "installed"
        zipfile.ZipFile(wheel).extractall(target)
        cache = {"XDG_CACHE_HOME": str(target / "cache"), "PYTHONPATH": str(target)}
        said = run(quick_start, **cache)
        if wheel is full:
            assert said.startswith(str(target / "saiopt" / "update" / "kernels"))
        else:
            assert said == "there is no C compiler (none of $CC, cc, gcc and clang)"
            compiled = run(quick_start, PATH=os.environ["PATH"], **cache)
            assert compiled.startswith(str(target / "cache"))
