"""An optimizer's own state, allocated on the meta device, which holds no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
)

from saiopt.optimizer import SGDSaI

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]

_aten = torch.ops.aten
# They change values only, which a meta tensor does not have; working out the result's
# shape for each takes seconds on a large model.
_IN_PLACE = frozenset(
    {
        _aten.add_,
        _aten.addcdiv_,
        _aten.addcmul_,
        _aten.copy_,
        _aten.div_,
        _aten.fill_,
        _aten.lerp_,
        _aten.mul_,
        _aten.sqrt_,
        _aten.sub_,
        _aten.zero_,
    }
)


class OptimizerError(Exception):
    """Tell why an optimizer's state cannot be found without memory."""


class _ReadAsOne(TorchDispatchMode):
    """Answer every reading of a meta tensor's values with ones.

    A meta tensor has no values, and reading one raises. Optimizers read a few: norms,
    step counts, whether a gradient is finite. With 1 for each they go the way of an
    ordinary step.
    """

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is _aten._to_copy.default and args[0].is_meta:
            device = torch.device(kwargs.get("device") or "meta")
            if device.type != "meta":
                dtype = kwargs.get("dtype") or args[0].dtype
                return torch.ones(args[0].shape, dtype=dtype, device=device)
        if func is _aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].fill_(1)
        if func.overloadpacket in _IN_PLACE and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def allocate_state(
    params: list[nn.Parameter], optimizer_factory: OptimizerFactory
) -> Optimizer:
    """Build an optimizer and let it allocate its state.

    :class:`saiopt.SGDSaI` allocates without a step; every other optimizer takes its
    first step, on gradients without values.

    Args:
        params: parameters on the meta device; their gradients are set and removed.
        optimizer_factory: from parameters to an optimizer.

    Returns:
        The optimizer with its state.

    Raises:
        TypeError: the factory returns something else than an optimizer.
        OptimizerError: the optimizer cannot be built or step there.
    """
    for param in params:
        param.grad = torch.empty_like(param) if param.requires_grad else None
    try:
        with _ReadAsOne():
            optimizer = optimizer_factory(params)
            if isinstance(optimizer, SGDSaI):
                optimizer.assign_scales({})
            elif isinstance(optimizer, Optimizer):
                optimizer.step()
    # What a foreign optimizer raises on tensors without values is not to be foreseen.
    except Exception as error:
        raise OptimizerError(
            "optimizer_factory must build an optimizer that can step on the meta "
            "device (foreach and fused left to None), "
            f"got {type(error).__name__}: {error}"
        ) from error
    finally:
        for param in params:
            param.grad = None
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer_factory must return a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    return optimizer


def stored_tensors(tensors: Iterable[object]) -> list[Tensor]:
    """Find the tensors that own the memory behind some values.

    Args:
        tensors: tensors, and containers of tensors; other values are ignored. Wrapper
            subclasses, such as quantised ones, count by the tensors within.

    Returns:
        One tensor for each distinct storage, in the order in which they are met.
    """
    found: dict[int, Tensor] = {}
    for value in tensors:
        for tensor in _leaves(value):
            found.setdefault(tensor.untyped_storage()._cdata, tensor)
    return list(found.values())


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Find the tensors that own the memory of an optimizer's state.

    Args:
        optimizer: after its first step.

    Returns:
        As :func:`stored_tensors`.
    """
    return stored_tensors(optimizer.state.values())


def storage_bytes(tensor: Tensor) -> int:
    """Return the bytes of the storage behind a tensor."""
    return tensor.untyped_storage().nbytes()


def _leaves(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            names, _ = value.__tensor_flatten__()
            for name in names:
                yield from _leaves(getattr(value, name))
        else:
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _leaves(entry)
