"""SGD-SaI: its arguments, its state, the choice of execution, and the step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from saiopt.distributed.run_seed import tell_run_seed
from saiopt.scaling import Scaling, rule_of

from . import options
from .binding import Binding, Taken
from .calibration import held_largest
from .given_scales import BlockScale, give_scale, misfit_of_scale
from .lane import Call, Gradients
from .state import is_concrete, is_state
from .state_dict import (
    A_CALLABLE,
    check_kind,
    check_places,
    fill_in,
    keep,
    read,
    without_idle_seed,
)
from .wrappers import bare_optimizer

# Strings are what command lines and files have, a dtype is what torch's users write.
StateDtype: TypeAlias = torch.dtype | Literal["float32", "bfloat16", "int8", "int4"]


class SGDSaI(Optimizer):
    r"""Implement SGD with momentum and learning-rate scaling at initialisation.

    Each block, one parameter tensor, calibrates once, at its first gradient that is
    finite and not all zero, and keeps its scale s::

        calibration   s = scaling(g) ;  m = g
        later         m = μ m + (1-μ) g
        update        θ = (1 - ηλ) θ ;  θ = θ - η s m

    Until then only the decay acts on the block. The first call of :meth:`step`
    allocates the state of every parameter that requires a gradient. Steps in which a
    sharded block waits run one small collective per process group, the first one more
    where sharded blocks round stochastically, later ones none; but `"orthogonal"`
    exchanges the parts of its matrices in every step, each of which one of their ranks
    orthogonalises. All ranks with a part step together, with a gradient or without.

    On a float32 model without degenerate blocks this follows the authors' release 1.0.3
    to rounding. It deviates on degenerate blocks (:func:`saiopt.scaling.gsnr`), and
    where the first gradient is zero, absent or not finite, on which the release never
    recovers. It deviates from :class:`torch.optim.SGD` in its decay, which is decoupled
    from the momentum, and in its moving average, whose dampening is μ. The momentum
    averages the gradient itself also under `maximize`, where the step changes its sign.

    Where the `scaling` of a group is changed to or from `"factored"` or `"orthogonal"`,
    its blocks begin anew, momentum included; between the others they keep their scales.
    State may be written in place, as a reset or a broadcast does. On accelerators a
    block that runs notices only what raises the version of its scale, which writes
    through `.data` and collectives do not. Where steps are traced or tensors have no
    values (make_fx, FakeTensorMode, the meta device), every block counts as begun.

    Args:
        params: parameters, (name, parameter) pairs or param groups.
        lr: η >= 0, a float or a tensor of one entry.
        momentum: μ in [0, 1). With 0 no momentum is kept.
        eps: ε >= 0, added to the standard deviation in the g-SNR, in the gradient's
            units.
        weight_decay: λ >= 0, decoupled.
        scaling: `"gsnr"`, `"gsnr_max"` (divided by the largest g-SNR of all blocks at
            the first calibration, the paper's Algorithm 1, for which all ranks are
            asked in every step until then), `"sqrt_numel"` (√n), `"none"` (1),
            `"factored"` (one scale per row and column, measured over the first
            gradients, :func:`saiopt.scaling.factored`), `"orthogonal"` (the
            momentum's orthogonal factor, :func:`saiopt.scaling.orthogonal`; lr in
            AdamW's units), or a callable from :class:`saiopt.Moments` to one scale per
            block.
        calibration_steps: K >= 1, the usable gradients that `"factored"` measures, as
            many as the learning rate warms up or more; None for 100.
        maximize: step along the gradient.
        foreach: whether to update lists of tensors together. None chooses.
        fused: whether to use a fused kernel. None chooses.
        state_dtype: dtype of the momentum: None for the parameter's, torch.float32,
            torch.bfloat16, torch.int8, the names of these, or `"int4"`. A row of c
            entries takes c + 2⌈c/32⌉ bytes in 8 bits and ⌈c/2⌉ + 2⌈c/32⌉ in 4, which is
            1.0625 and 0.5625 per entry where 32 divides c; parameters of one dimension
            or of less than 4096 entries keep float32 instead. FSDP1's slices cannot be
            coded: refused. A momentum of another dtype, from a checkpoint or from
            before the group's option was changed, is converted to the nearest; None
            keeps the dtype that there is.
        stochastic_rounding: whether results in bfloat16 and in codes round
            stochastically. None means yes. The noise is that of an entry of the whole
            block, on any ranks, and of the run by the first rank's
            :func:`torch.initial_seed`. Weights in float16 always round to the nearest,
            so that steps of less than half their spacing are lost.
        replicated: whether plain parameters are the same on all ranks of the default
            process group and step together, as under DistributedDataParallel. Then each
            rank finds the orthogonal factors of some and sends them to the others;
            else every rank finds all. DTensors are shared by their placements.
        bucket_cap_mb: MiB of matrices that a rank orthogonalises between two exchanges
            with the ranks that share them, if one matrix is not more.

    Raises:
        TypeError: an argument is of the wrong kind, or a parameter that trains is
            complex or sparse. Frozen ones are judged when they first train.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = SGDSaI(model.parameters(), lr=1e-2)
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.step()

    References:
        Xu et al. (2024), "No More Adam: Learning Rate Scaling at Initialization is All
        You Need", arXiv 2412.11768.
    """

    # What one step shares with the next, None before the first and after state_dict.
    _binding: Binding | None
    # The shapes of the blocks that were given: others are flattened or cut ones.
    _shapes: set[torch.Size]

    @options.refuse_unknown
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        scaling: Scaling = "gsnr",
        calibration_steps: int | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        state_dtype: StateDtype | None = None,
        stochastic_rounding: bool | None = None,
        replicated: bool = False,
        bucket_cap_mb: float = 25.0,
    ) -> None:
        given = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "scaling": scaling,
            "calibration_steps": calibration_steps,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
            "replicated": replicated,
            "bucket_cap_mb": bucket_cap_mb,
        }
        defaults = options.normalised(given)
        options.check(defaults, reads=_has_value(defaults["lr"]))
        self._binding, self._shapes = None, set()
        super().__init__(params, defaults)
        tell_run_seed()

    def __repr__(self) -> str:
        lines = super().__repr__().splitlines()
        # Of a large model names would hide the options.
        hidden = ("    param_names: ", "    scaled_by: ")
        text = "\n".join(line for line in lines if not line.startswith(hidden))
        for i, group in enumerate(self.param_groups):
            params, heading = group["params"], f"Parameter Group {i}\n"
            entries = sum(p.numel() for p in params)
            held = f"    params: {len(params)} tensors, {entries} entries\n"
            text = text.replace(heading, heading + held)
        return text

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its blocks calibrate by themselves.

        Args:
            param_group: `params`, and the options that differ from the defaults.

        Raises:
            TypeError: an option or a parameter is of the wrong kind.
            ValueError: an option is out of its range.
        """
        param_group = {**options.OF_GROUPS, **options.normalised(param_group)}
        given = {**self.defaults, **param_group}
        options.check_group(given, reads=_has_value(given["lr"]))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_params(group, len(self.param_groups) - 1)
        except (TypeError, ValueError, RuntimeError):
            self.param_groups.pop()
            raise
        self._binding = None
        if group["scaling"] == "gsnr_max":
            group.setdefault("gsnr_max", held_largest(self.param_groups))
        self._shapes.update(p.shape for p in group["params"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss; called once.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse, a parameter has changed its shape, or an
                execution or a state dtype that was asked for does not exist for it.
            TypeError: an option that was put into a group is of the wrong kind, or a
                parameter that trains now cannot be updated.
            ValueError: such an option is out of its range, except for a rate whose
                value only an accelerator knows; or a scaling callable returns a scale
                that is not positive and finite as float32. In all cases no parameter
                has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            for call in self._calls():
                call.run()
        else:
            binding, taken = self._take()
            binding.step(taken)
        return loss

    @torch.no_grad()
    def step_parameter(self, p: Tensor, group: dict[str, Any], i: int) -> None:
        """Perform the step of one parameter alone.

        Trainers with a fused backward pass call this when the gradient of a parameter
        is complete; :func:`saiopt.step_in_backward` does it for every parameter.

        Args:
            p: the parameter, with its gradient.
            group: its param group. The options are those of the group that has the
                parameter now: loading a state_dict puts others in their places.
            i: its index in the group, which this optimizer does not need.

        Raises:
            RuntimeError: see :meth:`step`.
            TypeError: see :meth:`step`.
            ValueError: the parameter is not the optimizer's, its group scales by
                `"gsnr_max"`, which needs all gradients, or is `replicated`; or see
                :meth:`step`.
        """
        del group, i
        binding, taken = self._take_one(p)
        if any(lane.group["replicated"] for lane, _ in taken):
            raise ValueError(
                "replicated must be False in step_parameter, which ranks need not call "
                "in the same order, got True"
            )
        if binding.needs_all_blocks:
            for lane, _ in taken:
                if rule_of(lane.group["scaling"]).needs_all_blocks:
                    raise ValueError("scaling must not be 'gsnr_max' in step_parameter")
        binding.step(taken)

    def state_dict(self) -> StateDict:
        """Return the state and the options; code is not among them.

        Returns:
            What :meth:`load_state_dict` needs to continue bit for bit. In the place of
            a `scaling` that is a callable it has a word, for which loading keeps the
            optimizer's own.
        """
        saved = super().state_dict()
        for group, held in zip(saved["param_groups"], self.param_groups, strict=True):
            # What was put into a group since the last step.
            group.update(options.normalised(group))
            if callable(group["scaling"]):
                group["scaling"] = A_CALLABLE
            for index, param in zip(group["params"], held["params"], strict=True):
                if index in saved["state"]:
                    entry = saved["state"][index]
                    saved["state"][index] = without_idle_seed(entry, param)
        return saved

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state_dict of this class or of the authors' `SGD_sai`.

        Tensors keep their dtypes, where torch would cast them to the parameters'; but a
        momentum is converted, to the nearest, where a group of this optimizer has
        another `state_dtype` than None. Rounding seeds that are not needed then are
        dropped, and the next step makes those that are missing. What wrappers have put
        into the state is carried.

        Options come from the state_dict, as in torch, except `foreach`, `fused`, such a
        `state_dtype`, and `param_names`, which are compared: a name that this optimizer
        has at another place is refused. Names that it does not have, of a model that
        was renamed, are not compared, and neither is what wrappers put into names.
        Hooks that bring a state_dict into order run before.

        Under FSDP1 all ranks load together: what its checkpoints leave out on a rank
        comes from the others.

        Args:
            state_dict: what :meth:`state_dict` returned.

        Raises:
            RuntimeError: `state_dtype` asks for codes of FSDP1's slices.
            TypeError: an option that it has is of the wrong kind.
            ValueError: the param groups do not match, an option is out of its range, or
                the state is another optimizer's or does not fit its parameters. In all
                cases nothing changes.
        """

        def shield(_: Optimizer, loaded: StateDict) -> StateDict:
            check_places(loaded["param_groups"], self.param_groups)
            return keep(loaded)

        hook = self.register_load_state_dict_pre_hook(shield)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def assign_scales(self, scales: Mapping[Tensor, BlockScale]) -> None:
        """Set the scales of some parameters; :func:`saiopt.set_scales` names them.

        A frozen parameter gets a state to remember its scale in.

        Args:
            scales: s by parameter, 0 to calibrate at the next usable gradient.

        Raises:
            ValueError: a parameter has other scales than these.
        """
        named = {p for p, s in scales.items() if s or is_state(self.state.get(p))}
        self._bind(Gradients(), named)
        given = [
            (scale, self.state[param])
            for param, scale in scales.items()
            if is_state(self.state.get(param))
        ]
        for scale, entry in given:
            problem = misfit_of_scale(scale, entry)
            if problem:
                raise ValueError(f"scales {problem}, got {scale}")
        for scale, entry in given:
            give_scale(scale, entry)
        self._binding = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        held_state = self.__dict__.get("state", {})
        held_groups = self.__dict__.get("param_groups", [])
        saved, groups = state.get("state", {}), state.get("param_groups", held_groups)
        check_kind(saved, groups)
        fill_in(groups, held_groups, state.get("defaults") or self.defaults)
        loaded = read(saved, held_state, groups)
        super().__setstate__({**state, "state": defaultdict(dict, loaded)})
        self._shapes = {p.shape for g in self.param_groups for p in g["params"]}
        self._binding = None

    def _bind(self, grads: Gradients, also: Collection[Tensor] = ()) -> Binding:
        """Check everything, and give every parameter that may train its state."""
        # A step that fails here must not find the old binding again.
        self._binding = None
        self._binding = Binding(
            self.param_groups, self.state, self._shapes, grads, also
        )
        return self._binding

    def _take(self) -> tuple[Binding, Taken]:
        binding, grads = self._binding, Gradients()
        taken = binding and binding.take(self.param_groups, self.state, grads)
        if binding is None or taken is None:
            binding = self._bind(grads)
            taken = binding.take(self.param_groups, self.state, grads)
        return binding, _given(taken)

    def _take_one(self, param: Tensor) -> tuple[Binding, Taken]:
        binding, grads = self._binding, Gradients()
        groups, states = self.param_groups, self.state
        taken = binding and binding.take_one(groups, states, grads, param)
        if binding is None or taken is None:
            if not any(param is p for g in groups for p in g["params"]):
                raise ValueError("p must be a parameter of this optimizer, got another")
            binding = self._bind(grads)
            taken = binding.take_one(groups, states, grads, param)
        return binding, _given(taken)

    # Everything that depends on the host, and reads the device while blocks wait, is
    # not for the compiler to trace; what it returns is tensors and operations on them.
    # The public `torch.compiler.disable` would import the whole compiler here.
    @torch._disable_dynamo
    def _calls(self) -> list[Call]:
        binding, taken = self._take()
        return binding.calls(taken)


def sgdsai_of(optimizer: Optimizer) -> SGDSaI:
    """Return the SGDSaI that an optimizer is or wraps.

    Args:
        optimizer: an SGDSaI, or a wrapper that has one as its `.optimizer`.

    Returns:
        The optimizer itself, whose state is the one that steps use.

    Raises:
        TypeError: it is neither.
    """
    found = bare_optimizer(optimizer)
    if not isinstance(found, SGDSaI):
        raise TypeError(
            f"optimizer must be SGDSaI, got {type(found).__name__}: wrappers must have "
            "an SGDSaI as their .optimizer"
        )
    return found


def _has_value(lr: object) -> bool:
    return not isinstance(lr, Tensor) or is_concrete(lr)


def _given(taken: Taken | None) -> Taken:
    if taken is None:
        raise RuntimeError(
            "optimizer.state must stay as it is during a step, got another"
        )
    return taken


def _check_params(group: Mapping[str, Any], index: int) -> None:
    names = group.get("param_names")
    for i, param in enumerate(group["params"]):
        options.check_given(param)
        if param.requires_grad:
            name = repr(names[i]) if names else f"parameter {i} of group {index}"
            options.check_trained(param, group, name)
