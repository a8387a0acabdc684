"""Runs a function on several ranks: real processes that talk through gloo."""

import gc
import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

# Longer than the slowest import on a busy machine, shorter than a hung test suite.
TIMEOUT_SECONDS = 300


def forget_meshes():
    """Let torch forget meshes whose groups are gone.

    It would hand them out for equal ones of the next groups, whose names may differ.
    """
    torch._C._clear_DTensor_sharding_propagator_cache()


def _surroundings():
    """What a test must leave as it was, for the next one that a process serves."""
    modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "saiopt"}
    modules["gc"] = gc
    functions = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in vars(module).items()
        if callable(value)
    }
    return {**functions, **os.environ, "threads": torch.get_num_threads()}


def _require_unchanged(before):
    after = _surroundings()
    changed = [key for key, value in before.items() if after.get(key) != value]
    if changed:
        raise RuntimeError(f"the test must leave as it was: {', '.join(changed)}")


def _serve(connection):
    torch.set_num_threads(1)
    while (task := connection.recv()) is not None:
        function, rank, world, store, args = task
        before = _surroundings()
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world
            )
            torch.manual_seed(0)
            result = (function(*args), None)
            dist.barrier()
            _require_unchanged(before)
        except BaseException:
            result = (None, traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            forget_meshes()
        connection.send(result)


class Workers:
    """Processes that start once and serve many tests."""

    def __init__(self):
        self.context = multiprocessing.get_context("spawn")
        self.pairs = []

    def run(self, world, function, *args):
        """Return the function's results, one per rank; raise what a rank raised."""
        while len(self.pairs) < world:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.pairs.append((process, ours))
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            for rank, (_, connection) in enumerate(self.pairs[:world]):
                connection.send((function, rank, world, store, args))
            return self._collect(world)

    def _collect(self, world):
        results = []
        for rank, (_, connection) in enumerate(self.pairs[:world]):
            if not connection.poll(TIMEOUT_SECONDS):
                self.stop()
                raise TimeoutError(f"rank {rank} hangs")
            result, error = connection.recv()
            if error is not None:
                self.stop()
                raise RuntimeError(f"rank {rank} failed:\n{error}")
            results.append(result)
        return results

    def stop(self):
        for process, connection in self.pairs:
            # A rank that waits for another one cannot be asked.
            process.terminate()
            process.join()
            connection.close()
        self.pairs = []
