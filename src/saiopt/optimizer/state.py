"""What the optimizer keeps for a parameter.

``scale``
    0-d float32. 0: not calibrated. s > 0: calibrated, the momentum runs. -s < 0: the
    scale is s already, and the next usable gradient starts the momentum.
``momentum_buffer``
    m; absent where the momentum has always been 0. Shaped like the parameter, except
    codes of 4 bits: torch.uint8 of shape (rows, ⌈columns / 2⌉), where the columns are
    the parameter's dimensions after the first.
``momentum_scale``
    bfloat16 of shape (rows, ⌈columns / 32⌉); present where m is held in 8 or 4 bits.
``rounding_seed``
    0-d int32, advances by one after each step, whose noise is that of its successor;
    present where results round stochastically.
``row_scale``, ``column_scale``
    float32 of shape (rows,) and (columns,), factors on the scale; present where the
    scaling rule has such axes.
``num_measured``, ``block_sum``, ``row_share``, ``column_share``
    How many gradients were measured, 0-d int32, what was summed up of them, 0-d
    float64, since squares leave float32's range, and which shares of it are of which
    rows and columns, float32 of shape (rows,) and (columns,); present where the rule
    measures several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from saiopt.distributed.fsdp1 import is_slice
from saiopt.distributed.run_seed import run_seed
from saiopt.distributed.shards import (
    checksums,
    hold_whole_groups,
    lie_alike,
    local_entries,
    zero_vector,
    zeros_beside,
)
from saiopt.low_bit import buffer_shape, code_of, scale_shape
from saiopt.scaling import RULES, Axis, matrix_shape, rule_of

# Smaller blocks keep their momentum in float32, and so do those of one dimension:
# together they are hardly any memory, and they are the sensitive ones.
_SMALLEST_CODED = 4096
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CODE_DTYPES = {"int8": torch.int8, "int4": torch.uint8}
_AXES: tuple[Axis, ...] = ("row", "column")
_OF_MEASURING = (
    "num_measured",
    "block_sum",
    "row_share",
    "column_share",
    "row_scale",
    "column_scale",
)
KEYS = (
    "scale",
    "momentum_buffer",
    "momentum_scale",
    "rounding_seed",
    "row_scale",
    "column_scale",
    "num_measured",
    "block_sum",
    "row_share",
    "column_share",
)


class _Form(NamedTuple):
    """Hold the shape and the dtype of a tensor, over all ranks."""

    shape: torch.Size
    dtype: torch.dtype


_SCALAR = torch.Size(())
SCALARS = {
    "scale": _Form(_SCALAR, torch.float32),
    "rounding_seed": _Form(_SCALAR, torch.int32),
    "num_measured": _Form(_SCALAR, torch.int32),
    "block_sum": _Form(_SCALAR, torch.float64),
}


def is_state(entry: object) -> TypeGuard[dict[str, Any]]:
    """Tell whether an entry of the optimizer's state is one of a block.

    Args:
        entry: what stands in `optimizer.state`; wrappers put their own things there.

    Returns:
        Whether it was allocated here.
    """
    return isinstance(entry, Mapping) and isinstance(entry.get("scale"), Tensor)


def complete(
    entry: dict[str, Any], param: Tensor, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return what a parameter's state lacks under the present options.

    A parameter without a state lacks all of it. A state_dict of the authors' class has
    no rounding seed, and one that was saved under momentum 0 no momentum. Rounding
    seeds are made apart (:func:`first_seeds`).

    Args:
        entry: the state by key.
        param: the parameter.
        options: its group's options by name.

    Returns:
        Tensors by key. Where the momentum of a calibrated block is among them, its
        scale is too, with the sign that starts the momentum at the next gradient.

    Raises:
        RuntimeError: see :func:`momentum`.
    """
    missing = {} if is_state(entry) else {"scale": _scalar(param, torch.float32)}
    if options["momentum"] != 0 and entry.get("momentum_buffer") is None:
        missing |= momentum(param, options)
        if is_state(entry):
            # The momentum was 0 until now.
            missing["scale"] = -entry["scale"].abs()
    measured = {} if "num_measured" in entry else _measured(param, options)
    if measured and is_state(entry):
        # Scales of another rule cannot go on as these.
        missing["scale"] = torch.zeros_like(entry["scale"])
    return missing | measured


def finer_rule(options: Mapping[str, Any]) -> str:
    """Return the name of a rule whose state cannot go on under another one.

    Args:
        options: a group's options by name.

    Returns:
        The scaling, "" for rules that give one scale per block at its first gradient.
    """
    scaling = options["scaling"]
    if not isinstance(scaling, str) or scaling not in RULES:
        return ""
    rule = RULES[scaling]
    return scaling if rule.measurement or rule.direction else ""


def obsolete(entry: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return the keys of a rule that measured more than the present one.

    Args:
        entry: a state by key.
        options: the group's options by name.

    Returns:
        Keys to take out of the state of a block that has not begun; one that runs
        keeps the scales that it has.
    """
    if "num_measured" not in entry or rule_of(options["scaling"]).measurement:
        return []
    if not is_concrete(entry["scale"]) or entry["scale"].item() > 0:
        return []
    return [key for key in _OF_MEASURING if key in entry]


def lacks_seed(
    entry: Mapping[str, Any], param: Tensor, options: Mapping[str, Any]
) -> bool:
    """Tell whether a block rounds stochastically and has no rounding seed yet.

    Args:
        entry: its state by key.
        param: the parameter.
        options: its group's options by name.

    Returns:
        Whether :func:`first_seeds` has to make one.
    """
    has_one = isinstance(entry.get("rounding_seed"), Tensor)
    return not has_one and rounds_stochastically(entry, param, options)


def ordinary_tensors(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return copies of tensors that were made under inference mode.

    Args:
        entry: a state by key; loading may have happened there.

    Returns:
        By key, what can be updated outside of it, where the entry's own cannot.
    """
    return {
        key: entry[key].clone()
        for key in KEYS
        if isinstance(entry.get(key), Tensor) and entry[key].is_inference()
    }


def _measured(param: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a rule that measures several gradients keeps of them."""
    rule = rule_of(options["scaling"])
    if rule.measurement is None:
        return {}
    axes = rule.axes(param.shape)
    zeros = {
        f"{axis}_{kind}": zero_vector(param, axis, torch.float32)
        for axis in _AXES
        if axis in axes
        for kind in ("scale", "share")
    }
    return {
        "num_measured": _scalar(param, torch.int32),
        "block_sum": _scalar(param, torch.float64),
        **zeros,
    }


def _scalar(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device=param.device)


def first_seeds(params: Sequence[Tensor]) -> list[Tensor]:
    """Return the first rounding seeds of blocks.

    A block's noise is its own, wherever it stands among an optimizer's parameters, in
    whichever of several optimizers, and on whichever ranks: it follows from the bits of
    the whole parameter. It is the run's by its seed, which ranks share, so that
    replicas round alike. Parameters that are equal differ by their order; in different
    optimizers they have the same noise.

    Args:
        params: parameters that round stochastically, the same on all ranks that share
            one. One collective runs for each process group that does.

    Returns:
        0-d int32, one for each.
    """
    seeds = [_scalar(p, torch.int32) for p in params]
    # What to_empty left behind on the meta device has no bits.
    pairs = [pair for pair in zip(params, seeds, strict=True) if is_concrete(pair[0])]
    if not pairs:
        return seeds
    found = checksums([param for param, _ in pairs])
    # Asked after the collectives: by then the first rank has told it.
    run, twins = run_seed(), Counter[int]()
    for (_, seed), checksum in zip(pairs, found, strict=True):
        words = (checksum, run, run >> 32, twins[checksum])
        seed.fill_(_spread(*words) - 2**31)
        twins[checksum] += 1
    return seeds


def _spread(*words: int) -> int:
    """Hash integers to one of 32 bits."""
    mixed = 0
    for word in words:
        mixed = ((mixed ^ word) & 0xFFFFFFFF) * 0x9E3779B1 & 0xFFFFFFFF
        mixed ^= mixed >> 15
    return mixed


def is_concrete(tensor: Tensor) -> bool:
    """Tell whether a tensor has values that the host can read.

    Args:
        tensor: any tensor.

    Returns:
        False on the meta device, for fake tensors, and while operations are traced.
    """
    local = local_entries(tensor)
    return not (local.is_meta or type(local).__name__ == "FakeTensor" or is_traced())


def is_traced() -> bool:
    """Tell whether operations are recorded or imitated instead of done.

    Returns:
        True in a FakeTensorMode, in make_fx and in export.
    """
    modes = _get_current_dispatch_mode_stack()
    before = torch._ops._get_current_dispatch_mode_pre_dispatch()
    return any(type(mode).__name__ in _TRACERS for mode in (*modes, before))


def is_in_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor has an address of its own.

    Args:
        tensor: any tensor.

    Returns:
        False for abstract tensors, and for subclasses that are made of others.
    """
    return type(tensor) in (Tensor, torch.nn.Parameter) and is_concrete(tensor)


# By name: importing the classes takes longer than all of this package.
_TRACERS = {"FakeTensorMode", "ProxyTorchDispatchMode", "FunctionalTensorMode"}


def momentum(param: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a zero momentum in the group's state dtype.

    Args:
        param: the parameter.
        options: its group's options by name.

    Returns:
        `momentum_buffer`, with the parameter's strides unless it holds codes, and
        `momentum_scale` where it does.

    Raises:
        RuntimeError: codes are asked for where FSDP1 has cut the rows to pieces.
    """
    refuse_slices(param, options)
    dtype = momentum_dtype(param, options)
    if dtype not in _CODE_DTYPES.values():
        buffer = torch.zeros_like(
            param, dtype=dtype, memory_format=torch.preserve_format
        )
        return {"momentum_buffer": buffer}
    return {
        key: zeros_beside(param, form.shape, form.dtype)
        for key, form in _momentum_forms(param, dtype).items()
    }


def refuse_slices(param: Tensor, options: Mapping[str, Any]) -> None:
    """Raise where codes are asked for and FSDP1 has cut the rows to pieces.

    Args:
        param: the parameter.
        options: its group's options by name.

    Raises:
        RuntimeError: so it is.
    """
    if options["state_dtype"] in _CODE_DTYPES and is_slice(param):
        raise RuntimeError(
            "state_dtype must be None, torch.float32 or torch.bfloat16 under "
            "FullyShardedDataParallel, whose slices have no rows to code, "
            f"got {options['state_dtype']}: use fully_shard"
        )


def misfit(entry: object, param: Tensor) -> str:
    """Return why a state cannot be that of a parameter, "" if it can.

    The kernels are given addresses, and believe the parameter's size. Keys that are
    not of this optimizer, and a state that is not complete, fit.

    Args:
        entry: the state by key.
        param: the parameter.

    Returns:
        A sentence, or "".
    """
    if not isinstance(entry, Mapping):
        return f"a state must be a dict, got {entry!r}"
    forms = _forms(entry, param)
    for key in KEYS:
        held, form = entry.get(key), forms.get(key)
        if held is None and form is None:
            continue
        if not isinstance(held, Tensor):
            return f"{key} must be a tensor, got {held}"
        if form is None:
            return f"{key} must be absent beside momentum that is not held in codes"
        if (held.shape, held.dtype) != form:
            return (
                f"{key} must be {form.dtype} of shape {tuple(form.shape)} for a "
                f"parameter of shape {tuple(param.shape)}, got {held.dtype} of shape "
                f"{tuple(held.shape)}"
            )
        if key not in SCALARS and not lie_alike(held, param):
            return f"{key} must be distributed over the ranks as its parameter is"
        if held.dtype in _CODE_DTYPES.values() and not hold_whole_groups(
            param, code_of(held.dtype).group_size
        ):
            return f"{key} must hold whole groups of codes on every rank"
    return ""


def lacks_memory(tensor: Tensor) -> str:
    """Return why a tensor's memory does not hold its entries, "" if it does.

    Args:
        tensor: any tensor; offloading code frees the storage of some.

    Returns:
        The end of a sentence, or "".
    """
    local = local_entries(tensor)
    if local.numel() == 0 or local._is_zerotensor() or not is_in_memory(local):
        return ""
    pairs = zip(local.shape, local.stride(), strict=True)
    last = local.storage_offset() + sum((n - 1) * step for n, step in pairs)
    needed = (last + 1) * local.element_size()
    held = local.untyped_storage().nbytes()
    if held >= needed:
        return ""
    return f"must have memory for its entries, {needed} bytes, got {held}"


def _forms(entry: Mapping[str, object], param: Tensor) -> dict[str, _Form]:
    """Return what the tensors of a state must be."""
    forms = {key: form for key, form in SCALARS.items() if key in entry}
    buffer = entry.get("momentum_buffer")
    if isinstance(buffer, Tensor):
        forms |= _momentum_forms(param, buffer.dtype)
    for axis, size in zip(_AXES, matrix_shape(param.shape), strict=True):
        for key in (f"{axis}_scale", f"{axis}_share"):
            if key in entry:
                forms[key] = _Form(torch.Size([size]), torch.float32)
    return forms


def _momentum_forms(param: Tensor, dtype: torch.dtype) -> dict[str, _Form]:
    """Return what a momentum that is held in a dtype consists of."""
    if dtype not in _CODE_DTYPES.values():
        return {"momentum_buffer": _Form(param.shape, dtype)}
    code = code_of(dtype)
    rows, cols = matrix_shape(param.shape)
    packed = torch.Size(buffer_shape(code, rows, cols))
    scales = torch.Size(scale_shape(code, rows, cols))
    return {
        "momentum_buffer": _Form(param.shape if code.bits == 8 else packed, dtype),
        "momentum_scale": _Form(scales, torch.bfloat16),
    }


def momentum_dtype(param: Tensor, options: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype that holds a parameter's momentum if it is made now.

    Args:
        param: the parameter.
        options: its group's options by name.

    Returns:
        torch.int8 or torch.uint8 for codes.
    """
    asked = options["state_dtype"]
    if asked not in _CODE_DTYPES:
        return _DTYPES.get(asked, param.dtype)
    if param.dim() < 2 or param.numel() < _SMALLEST_CODED:
        return torch.float32
    code_dtype = _CODE_DTYPES[asked]
    if not hold_whole_groups(param, code_of(code_dtype).group_size):
        return torch.float32
    return code_dtype


def rounds_stochastically(
    entry: Mapping[str, Any], param: Tensor, options: Mapping[str, Any]
) -> bool:
    """Tell whether a parameter needs a rounding seed.

    Args:
        entry: its state by key.
        param: the parameter.
        options: its group's options by name.

    Returns:
        True where something of it is stored in bfloat16 or in codes.
    """
    if options["stochastic_rounding"] is False:
        return False
    stored = {param.dtype}
    if isinstance(entry.get("momentum_buffer"), Tensor):
        stored.add(entry["momentum_buffer"].dtype)
    return bool(stored & {torch.bfloat16, torch.int8, torch.uint8})
