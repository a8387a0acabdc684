"""Which values the optimizer's arguments may take."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container, Mapping
from numbers import Real
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from saiopt.distributed.fsdp1 import is_slice
from saiopt.scaling import rule_of

# By the names that groups keep: distributed checkpoints refuse a torch.dtype.
_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}
STATE_DTYPES = (*_DTYPE_NAMES.values(), "int4")
# What is narrower has no spacing left for a step.
_PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What users of other optimizers know instead.
_TAKES_THEIR_PLACE = {
    "betas": "momentum",
    "beta1": "momentum",
    "beta": "momentum",
    "dampening": "momentum",
}
_P = ParamSpec("_P")
_NUMBERS = {
    "lr",
    "momentum",
    "eps",
    "weight_decay",
    "lr_multiplier",
    "bucket_cap_mb",
}
# Options that a group may have and the constructor has not.
OF_GROUPS: dict[str, Any] = {"lr_multiplier": 1.0, "stacked": False}


def normalised(options: Mapping[str, Any]) -> dict[str, Any]:
    """Write options as a group keeps them.

    Args:
        options: what the user gave, not all of them perhaps, and keys of his own.

    Returns:
        The same with the name of the state dtype, and with Python's own numbers:
        `torch.load` refuses those of NumPy.
    """
    found = dict(options)
    for name in _NUMBERS & found.keys():
        value = found[name]
        if type(value) not in (bool, int, float) and isinstance(value, Real):
            found[name] = float(value)
    if isinstance(found.get("state_dtype"), torch.dtype):
        dtype = found["state_dtype"]
        found["state_dtype"] = _DTYPE_NAMES.get(dtype, dtype)
    return found


def check(options: Mapping[str, Any], *, reads: bool = True) -> None:
    """Check the options of one param group.

    Args:
        options: the group's options by name; other keys are the user's own.
        reads: whether to read an lr that is a tensor from its device.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: an option is out of its range.
    """
    check_lr(options["lr"], reads=reads)
    _check_number("momentum", options["momentum"], below=1)
    _check_number("eps", options["eps"])
    _check_number("weight_decay", options["weight_decay"])
    check_names(options)
    _check_multiplier(options.get("lr_multiplier", 1.0))
    _check_flag("stacked", options.get("stacked", False), optional=False)
    _check_flag("maximize", options["maximize"], optional=False)
    _check_flag("replicated", options["replicated"], optional=False)
    _check_bucket(options["bucket_cap_mb"])
    for name in ("foreach", "fused", "stochastic_rounding"):
        _check_flag(name, options[name], optional=True)
    if options["foreach"] and options["fused"]:
        raise ValueError("foreach must be False or None where fused is True, got True")


def check_names(options: Mapping[str, Any]) -> None:
    """Check the options on which the state of a block depends.

    Args:
        options: the group's options by name.

    Raises:
        TypeError: `calibration_steps` is no whole number.
        ValueError: there is no such scaling or state dtype, or no such number.
    """
    rule_of(options["scaling"])
    _check_calibration(options)
    if options["state_dtype"] not in (None, *STATE_DTYPES):
        raise ValueError(
            "state_dtype must be None, torch.float32, torch.bfloat16, torch.int8 (or "
            "their names) or 'int4', "
            f"got {options['state_dtype']!r}"
        )


def _check_calibration(options: Mapping[str, Any]) -> None:
    steps = options["calibration_steps"]
    if steps is None:
        return
    if isinstance(steps, bool) or not isinstance(steps, (int, torch.SymInt)):
        raise TypeError(f"calibration_steps must be a whole number, got {steps!r}")
    if steps < 1:
        raise ValueError(f"calibration_steps must be at least 1, got {steps}")


def check_group(options: Mapping[str, Any], *, reads: bool = True) -> None:
    """Check the options of a param group, those too that the defaults give it.

    Args:
        options: the group's options by name.
        reads: as in :func:`check`.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: an option is out of its range, or the scaling does not measure as
            many gradients as it is asked to.
    """
    check(options, reads=reads)
    rule, steps = rule_of(options["scaling"]), options["calibration_steps"] or 1
    if rule.measurement is None and rule.num_gradients == 1 < steps:
        raise ValueError(
            "calibration_steps must be None or 1 for a scaling that is measured at one "
            f"gradient, got {steps} for {options['scaling']!r}"
        )


def num_gradients(options: Mapping[str, Any]) -> int:
    """Return how many usable gradients a block measures.

    Args:
        options: its group's options by name.

    Returns:
        K; 0 where the rule measures none.
    """
    rule = rule_of(options["scaling"])
    if rule.measurement is None or options["calibration_steps"] is None:
        return rule.num_gradients
    return options["calibration_steps"]


def refuse_unknown(init: Callable[_P, None]) -> Callable[_P, None]:
    """Let a constructor name what takes the place of an argument that it lacks.

    Its signature stays as it is, for whoever reads it: people, type checkers, and
    frameworks that choose what to pass.

    Args:
        init: the constructor.

    Returns:
        The same, which raises TypeError for unknown names.
    """
    known = inspect.signature(init)

    @functools.wraps(init)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> None:
        for name, value in kwargs.items():
            if name not in known.parameters:
                instead = _TAKES_THEIR_PLACE.get(name)
                hint = f": {instead} takes its place" if instead else ""
                raise TypeError(
                    f"SGDSaI got an unexpected keyword argument {name!r} ({value!r})"
                    f"{hint}"
                )
        init(*args, **kwargs)

    # For those who ask without looking through wrappers.
    vars(checked)["__signature__"] = known
    return checked


def check_given(param: Tensor) -> None:
    """Check what must be true of a parameter from the start, frozen or not.

    Args:
        param: the parameter.

    Raises:
        RuntimeError: FSDP1 flattened several parameters into this one.
        ValueError: the parameter has no shape yet.
    """
    if is_lazy(param):
        raise ValueError(
            "params must have their shapes, got one of a lazy module: call the model "
            "once before making the optimizer"
        )
    if getattr(param, "_is_flat_param", False):
        raise RuntimeError(
            "params must be whole parameters, got a flattened one, in which the blocks "
            "are lost: wrap the model with FullyShardedDataParallel("
            "use_orig_params=True), or with fully_shard"
        )


def check_trained(param: Tensor, options: Mapping[str, Any], name: str) -> None:
    """Check that the optimizer can update a parameter.

    Args:
        param: the parameter, which trains.
        options: its group's options by name.
        name: what to call it.

    Raises:
        RuntimeError: the scaling is of rows and columns or of whole matrices, and the
            parameter is a slice of FSDP1.
        TypeError: the parameter is complex, sparse, or of a dtype that cannot be
            trained.
        ValueError: `stochastic_rounding` is True for one of float16, or the scaling is
            of matrices, and the parameter is none.
    """
    if param.layout != torch.strided or param.dtype not in _PARAM_DTYPES:
        way = "leave it out, or freeze it"
        if param.is_complex():
            way = "train torch.view_as_real() of it"
        elif param.layout != torch.strided:
            way = "train its to_dense()"
        raise TypeError(
            "params must be dense real tensors of 16, 32 or 64 bits of floating point, "
            f"got {param.dtype} with layout {param.layout} for {name}: {way}"
        )
    if options["stochastic_rounding"] and param.dtype == torch.float16:
        raise ValueError(
            "stochastic_rounding must be None or False for float16 parameters, got "
            f"True for {name}"
        )
    _check_matrix(param, options, name)


def _check_matrix(param: Tensor, options: Mapping[str, Any], name: str) -> None:
    """Check that a direction of whole matrices can be found for a parameter."""
    scaling, stacked = options["scaling"], options.get("stacked", False)
    rule = rule_of(scaling)
    if (rule.measurement or rule.direction) and is_slice(param):
        raise RuntimeError(
            f"scaling must not be {scaling!r} under FullyShardedDataParallel, whose "
            f"slices have no rows and columns, got {name}: use fully_shard"
        )
    if stacked and param.dim() < 3:
        raise ValueError(
            "stacked must be False for parameters of fewer than three dimensions, got "
            f"True for {name} of shape {tuple(param.shape)}"
        )
    if rule.direction is None:
        return
    if param.dim() < 2:
        raise ValueError(
            f"scaling must not be {scaling!r} for parameters of fewer than two "
            f"dimensions, got {name} of shape {tuple(param.shape)}: "
            "saiopt.orthogonal_groups chooses for every parameter"
        )


def check_shape(param: Tensor, given: Container[torch.Size]) -> None:
    """Check that a parameter is one of the blocks that the optimizer was given.

    Trainers that flatten parameters put one long tensor in the place of many blocks, or
    a part of it, after the optimizer is made.

    Args:
        param: a parameter that has no state yet.
        given: the shapes of the parameters that were given.

    Raises:
        RuntimeError: no block has this shape.
    """
    if param.shape not in given:
        raise RuntimeError(
            "params must keep the shapes that the optimizer was given, got "
            f"{tuple(param.shape)}: a flattened tensor, as DeepSpeed's ZeRO makes "
            "them, has lost its blocks (fully_shard and ZeroRedundancyOptimizer keep "
            "them), and new parameters come through add_param_group"
        )


def check_grad(param: Tensor, name: str) -> None:
    """Check that the optimizer can read a parameter's gradient.

    Args:
        param: the parameter, with or without a gradient.
        name: what to call it.

    Raises:
        RuntimeError: the gradient is sparse, not of the parameter's shape, or its
            memory was freed.
    """
    grad = param.grad
    if grad is None:
        return
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"gradients must be dense, got {grad.layout} for {name}: make an embedding "
            "with sparse=False, or leave it to torch.optim.SparseAdam"
        )
    if grad.shape != param.shape:
        raise RuntimeError(
            "gradients must have the shapes of their parameters, "
            f"got {tuple(grad.shape)} for {tuple(param.shape)} of {name}"
        )
    if grad.dtype != param.dtype and grad.dtype not in _PARAM_DTYPES:
        raise RuntimeError(
            "gradients must be of 16, 32 or 64 bits of floating point, got "
            f"{grad.dtype} for {name}"
        )


def check_lr(lr: object, *, reads: bool = True) -> None:
    """Check a learning rate.

    Args:
        lr: a float, or a tensor of one entry.
        reads: whether to read a tensor's value from its device.

    Raises:
        TypeError: it is neither.
        ValueError: it is negative or not finite.
    """
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(
                f"lr must be a float or a tensor of one entry, got {lr.numel()} entries"
            )
        if not reads:
            return
        lr = lr.item()
    _check_number("lr", lr)


def _check_number(name: str, value: object, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < below:
        rule = "finite and >= 0" if below == math.inf else f"in [0, {below})"
        raise ValueError(f"{name} must be {rule}, got {value}")


def _check_multiplier(value: object) -> None:
    _check_number("lr_multiplier", value)
    if value == 0:
        raise ValueError(f"lr_multiplier must be above 0, got {value}: freeze instead")


def _check_bucket(value: object) -> None:
    _check_number("bucket_cap_mb", value)
    if value == 0:
        raise ValueError(f"bucket_cap_mb must be above 0, got {value}")


def _check_flag(name: str, value: object, *, optional: bool) -> None:
    if not isinstance(value, bool) and not (optional and value is None):
        rule = "True, False or None" if optional else "True or False"
        raise TypeError(f"{name} must be {rule}, got {value!r}")
