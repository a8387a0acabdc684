"""Which parameters FSDP1 flattened, and over which ranks it sliced them."""

from __future__ import annotations

import gc
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# What it puts on every parameter that it flattens, the original ones included.
_MARK = "_fsdp_flattened"
# By original parameter, None where every rank keeps the whole.
_slices = WeakTensorKeyDictionary()


class _Slice(NamedTuple):
    """Say which part of an original parameter a rank keeps.

    Args:
        group: the ranks that keep the others.
        start: index of its first entry in the original.
    """

    group: dist.ProcessGroup
    start: int


def is_flattened(param: Tensor) -> bool:
    """Tell whether FSDP1 flattened a parameter, as a whole or in slices.

    Args:
        param: the parameter.

    Returns:
        True for an original parameter of a wrapped model, and for a flat one.
    """
    return getattr(param, _MARK, False)


def is_slice(param: Tensor) -> bool:
    """Tell whether a parameter is but a slice of the original one.

    Args:
        param: the parameter.

    Returns:
        True where it has one dimension for that reason.

    Raises:
        RuntimeError: see :func:`slicing_group`.
    """
    return slicing_group(param) is not None


def slicing_group(param: Tensor) -> dist.ProcessGroup | None:
    """Return the process group over which a parameter is sliced.

    Args:
        param: the parameter.

    Returns:
        The group, or None for a whole parameter.

    Raises:
        RuntimeError: the handles are hidden from the garbage collector.
    """
    found = _slice_of(param)
    return None if found is None else found.group


def slice_start(param: Tensor) -> int:
    """Return the index of a parameter's first entry in the original one.

    Args:
        param: the parameter.

    Returns:
        The index, 0 for a whole parameter.

    Raises:
        RuntimeError: see :func:`slicing_group`.
    """
    found = _slice_of(param)
    return 0 if found is None else found.start


def _slice_of(param: Tensor) -> _Slice | None:
    """Find a slice: it knows neither its whole nor its group.

    Only FSDP1's handles do, and only the garbage collector knows all of those.
    """
    if not is_flattened(param) or not dist.is_initialized():
        return None
    if param not in _slices:
        _read_handles()
    # A whole one may have another number of dimensions, a slice always has one.
    if param not in _slices and param.dim() == 1 and dist.get_world_size() > 1:
        raise RuntimeError(
            "gc.freeze() must not hide the FullyShardedDataParallel model from the "
            "optimizer's first step: call step() once before it"
        )
    return _slices.get(param)


def _read_handles() -> None:
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    for handle in gc.get_objects():
        if type(handle) is FlatParamHandle:
            flat = handle.flat_param
            pairs = zip(flat._params or (), flat._shard_param_infos, strict=False)
            for original, info in pairs:
                _slices[original] = (
                    _Slice(handle.process_group, info.intra_param_start_idx or 0)
                    if handle.uses_sharded_strategy
                    else None
                )
