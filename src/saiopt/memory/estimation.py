"""Bytes that training a model takes, found without allocating them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saiopt.optimizer import SGDSaI

from .caching_allocator import Footprint, footprint
from .state_allocation import (
    OptimizerFactory,
    allocate_state,
    state_tensors,
    storage_bytes,
    stored_tensors,
)


@dataclass(frozen=True)
class Estimate:
    """Hold the memory of one rank, activations and temporaries not included.

    Args:
        num_params: entries of all parameters of the whole model.
        num_trainable: entries of the trainable parameters that this rank holds.
        weights: the parameters.
        buffers: the model's buffers, which are never sharded.
        gradients: of the trainable parameters.
        state: of the optimizer. Its tensor bytes include step counts that some
            optimizers keep in host memory, and everything that is replicated on every
            rank, such as the scales of SGD-SaI.
        largest_gradient_bytes: of the largest gradient alone.
    """

    num_params: int
    num_trainable: int
    weights: Footprint
    buffers: Footprint
    gradients: Footprint
    state: Footprint
    largest_gradient_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return the tensor bytes of weights, buffers, gradients and state."""
        return self._resident_bytes + self.gradients.tensor_bytes

    @property
    def release_bytes(self) -> int:
        """Return the peak of gradient release: the total with one gradient alive.

        Stepping inside the backward pass frees each gradient before the next exists.
        """
        return self._resident_bytes + self.largest_gradient_bytes

    @property
    def state_bytes_per_parameter(self) -> float:
        """Return the tensor bytes of state for each trainable entry of this rank."""
        return self.state.tensor_bytes / max(self.num_trainable, 1)

    @property
    def _resident_bytes(self) -> int:
        parts = (self.weights, self.buffers, self.state)
        return sum(part.tensor_bytes for part in parts)


def estimate(
    model: nn.Module,
    optimizer_factory: OptimizerFactory,
    *,
    dtype: torch.dtype | None = None,
    num_shards: int = 1,
) -> Estimate:
    """Compute the memory that training takes, on any device, without allocating it.

    The optimizer's state is not computed from a formula: the real optimizer allocates
    it, for parameters of the same shapes on the meta device. It is exact, except where
    the state depends on values: Prodigy keeps no copy of a parameter that is all zero.

    Shards are those of FSDP2: each parameter is cut along its first dimension into
    ceil(rows / num_shards) rows, and the rank that is described is the one that holds
    most. Parameters that FSDP2 gathers for a forward pass are not included.

    Args:
        model: the model, real or on the meta device; it is not changed.
        optimizer_factory: from the list of trainable parameters, in the order of
            ``model.parameters()``, to an optimizer, for instance ``torch.optim.AdamW``.
        dtype: floating dtype of the weights instead of the model's own.
        num_shards: ranks that share the model, >= 1.

    Returns:
        Bytes of tensors and of the CUDA allocator's blocks and segments, for one rank.

    Raises:
        TypeError: `model` is not a module, `dtype` no floating dtype, or the factory
            returns no optimizer.
        ValueError: `num_shards` is below 1, or the model has no trainable parameter.
        OptimizerError: the optimizer cannot step on the meta device.

    Example:
        >>> found = estimate(nn.Linear(100, 100), torch.optim.AdamW)
        >>> found.weights.tensor_bytes, found.gradients.tensor_bytes
        (40400, 40400)
        >>> found.state.tensor_bytes  # two moments, and two step counts of 4 bytes
        80808
    """
    _check(model, dtype, num_shards)
    params = [_shard(p, dtype, num_shards) for p in model.parameters()]
    trainable = [p for p in params if p.requires_grad]
    if not trainable:
        raise ValueError("model must have a parameter that requires a gradient")
    state = _state(model, optimizer_factory, trainable, dtype, num_shards)
    gradient_sizes = [storage_bytes(p) for p in trainable]
    return Estimate(
        num_params=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for p in trainable),
        weights=footprint(map(storage_bytes, params)),
        buffers=footprint(_buffer_sizes(model, dtype)),
        gradients=footprint(gradient_sizes),
        state=_device_footprint(state),
        largest_gradient_bytes=max(gradient_sizes),
    )


def _check(model: object, dtype: object, num_shards: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if dtype is not None and not (
        isinstance(dtype, torch.dtype) and dtype.is_floating_point
    ):
        raise TypeError(f"dtype must be a floating dtype or None, got {dtype!r}")
    if isinstance(num_shards, bool) or not isinstance(num_shards, int):
        raise TypeError(f"num_shards must be an integer, got {num_shards!r}")
    if num_shards < 1:
        raise ValueError(f"num_shards must be >= 1, got {num_shards}")


def _state(
    model: nn.Module,
    optimizer_factory: OptimizerFactory,
    shards: list[nn.Parameter],
    dtype: torch.dtype | None,
    num_shards: int,
) -> list[Tensor]:
    """Return the state's tensors on the rank that holds most."""
    optimizer = allocate_state(shards, optimizer_factory)
    if num_shards == 1 or not isinstance(optimizer, SGDSaI):
        return state_tensors(optimizer)
    # It chooses the momentum's form from the whole block, and cuts that by rows.
    whole = [_shard(p, dtype, 1) for p in model.parameters() if p.requires_grad]
    optimizer = allocate_state(whole, optimizer_factory)
    return [
        # What differs from column to column is whole on every rank.
        tensor if key.startswith("column_") else _largest_rows(tensor, num_shards)
        for entry in optimizer.state.values()
        for key, tensor in entry.items()
    ]


def _largest_rows(tensor: Tensor, num_shards: int) -> Tensor:
    shape = list(tensor.shape)
    if shape:
        shape[0] = -(-shape[0] // num_shards)
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def _shard(
    param: nn.Parameter, dtype: torch.dtype | None, num_shards: int
) -> nn.Parameter:
    """Return the largest shard of a parameter, on the meta device."""
    whole = torch.empty(param.shape, dtype=_dtype(param, dtype), device="meta")
    local = _largest_rows(whole, num_shards)
    return nn.Parameter(local, requires_grad=param.requires_grad)


def _dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and tensor.is_floating_point() else tensor.dtype


def _buffer_sizes(model: nn.Module, dtype: torch.dtype | None) -> list[int]:
    return [
        storage_bytes(b) // b.itemsize * _dtype(b, dtype).itemsize
        for b in stored_tensors(model.buffers())
    ]


def _device_footprint(tensors: list[Tensor]) -> Footprint:
    return footprint(
        (storage_bytes(t) for t in tensors if t.is_meta),
        (storage_bytes(t) for t in tensors if not t.is_meta),
    )
