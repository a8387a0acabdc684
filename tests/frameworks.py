"""Train every example of a framework, interrupt it, and go on.

    python tests/frameworks.py

prints a line for each. An example resumes equal if the run that was interrupted ends
with the weights of the one that was not, bit for bit.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from importlib import import_module, metadata
from pathlib import Path
from unittest import mock

import torch

from saiopt import SGDSaI

EXAMPLES = Path(__file__).parents[1] / "examples" / "frameworks"
# The package of an example, and the numbers of processes that it is trained on.
CASES = {
    "trainer": ("transformers", (1, 2)),
    "trl_sft": ("trl", (1,)),
    "trl_dpo": ("trl", (1,)),
    "accelerate_loop": ("accelerate", (1, 2)),
    "lightning_trainer": ("lightning", (1, 2)),
    "fabric_loop": ("lightning", (1,)),
    "peft_lora": ("peft", (1,)),
    "diffusers_unet": ("diffusers", (1,)),
    "ignite_engine": ("pytorch-ignite", (1,)),
    "skorch_net": ("skorch", (1,)),
    "fused_backward": ("torch", (1,)),
}
# After the checkpoint of step 3, before that of step 6.
INTERRUPTED_AT = 5


class StoppedError(Exception):
    pass


@contextlib.contextmanager
def interrupted():
    """Raise at a step in the middle, and expect that it comes through."""
    taken = {}

    def counted(method):
        def step(optimizer, *args, **kwargs):
            # Parameters that step one by one count for themselves.
            key = id(args[0]) if args and isinstance(args[0], torch.Tensor) else None
            taken[key] = taken.get(key, 0) + 1
            if taken[key] == INTERRUPTED_AT:
                raise StoppedError
            return method(optimizer, *args, **kwargs)

        return step

    with contextlib.ExitStack() as stack:
        for name in ("step", "step_parameter"):
            patched = counted(getattr(SGDSaI, name))
            stack.enter_context(mock.patch.object(SGDSaI, name, patched))
        try:
            yield
        except StoppedError:
            return
    raise AssertionError("the run was not interrupted")


def train(name, folder, *, interrupts=False):
    """Train an example in this process, and return its weights."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        example = import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))
    folder.mkdir(exist_ok=True)
    with interrupted() if interrupts else contextlib.nullcontext():
        return [p.detach() for p in example.train(folder).parameters()]
    return None


def train_on(world, name, folder, *, interrupts=False):
    """The same on several processes, which each end with the weights."""
    if world == 1:
        return train(name, folder, interrupts=interrupts)
    weights = folder.with_suffix(".pt")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [f"--nproc-per-node={world}", __file__, "--example", name, str(folder)]
    extra = ["--interrupt"] if interrupts else ["--weights", str(weights)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [*launcher, *script, *extra],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return None if interrupts else torch.load(weights)


def resumes_equal(name, world, folder):
    """Tell whether a run that was interrupted ends as one that was not."""
    expected = train_on(world, name, folder / "whole")
    train_on(world, name, folder / "parts", interrupts=True)
    found = train_on(world, name, folder / "parts")
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--example")
    parser.add_argument("--interrupt", action="store_true")
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    if options.example:
        found = train(options.example, options.folder, interrupts=options.interrupt)
        if options.weights and os.environ.get("RANK") == "0":
            torch.save(found, options.weights)
        if options.interrupt:
            # Ranks that wait for each other at their end would wait for ever.
            os._exit(0)
        return
    titles = f"{'example':<20}{'package':<16}{'version':<12}{'layout':<13}"
    print(f"{titles}int4   trains, resumes equal")
    for name, (package, worlds) in CASES.items():
        for world in worlds:
            with tempfile.TemporaryDirectory() as folder:
                equal = resumes_equal(name, world, Path(folder))
            version = metadata.version(package)
            layout = "one process" if world == 1 else f"DDP, {world}"
            codes = '"int4"' in (EXAMPLES / f"{name}.py").read_text()
            line = f"{name:<20}{package:<16}{version:<12}{layout:<13}{codes!s:<7}"
            print(f"{line}{equal}", flush=True)


if __name__ == "__main__":
    main()
