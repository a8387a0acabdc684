"""The seed of a run, which all of its processes share.

Processes that train one model are often seeded apart, so that they draw other examples
or leave out other entries. What they must draw alike follows from the first one's seed.
They pass it on in the store of the default process group, where nobody waits: no
collective is in order wherever a step may happen.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

_KEY = "saiopt/run_seed"


def tell_run_seed() -> None:
    """Let the first process tell the others its seed, where there are others."""
    store = _store()
    if store is not None and dist.get_rank() == 0:
        store.set(_KEY, str(torch.initial_seed()))


def run_seed() -> int:
    """Return the seed of the run.

    Returns:
        What the first process has told, the same in all of them; in a single process
        :func:`torch.initial_seed`. Where the first has told nothing, the seed of the
        process that asks first.
    """
    own = torch.initial_seed()
    store = _store()
    return own if store is None else int(store.compare_set(_KEY, "", str(own)))


def _store() -> dist.Store | None:
    """Return what the processes share, None where there are no others to share it."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    # The fake group pretends to have other processes, and its store holds nothing.
    if dist.get_world_size() == 1 or dist.get_backend() == "fake":
        return None
    return dist.distributed_c10d._get_default_store()
