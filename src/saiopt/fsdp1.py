"""Which parameters FSDP1 flattened, and over which ranks it sliced them."""

from __future__ import annotations

import gc

import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# What it puts on every parameter that it flattens, the original ones included.
_MARK = "_fsdp_flattened"
# Process group by original parameter, None where every rank keeps the whole.
_groups = WeakTensorKeyDictionary()


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

    A slice knows neither its whole nor its group: only FSDP1's handles do, and only the
    garbage collector knows all of those.

    Args:
        param: the parameter.

    Returns:
        The group, or None for a whole parameter.

    Raises:
        RuntimeError: the handles are hidden from the garbage collector.
    """
    if not is_flattened(param) or not dist.is_initialized():
        return None
    if param not in _groups:
        _read_handles()
    # A whole one may have another number of dimensions, a slice always has one.
    if param not in _groups and param.dim() == 1 and dist.get_world_size() > 1:
        raise RuntimeError(
            "gc.freeze() must not hide the FullyShardedDataParallel model from the "
            "optimizer's first step: call step() once before it"
        )
    return _groups.get(param)


def _read_handles() -> None:
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    for handle in gc.get_objects():
        if type(handle) is FlatParamHandle:
            group = handle.process_group if handle.uses_sharded_strategy else None
            for original in handle.flat_param._params or ():
                _groups[original] = group
