"""The optimizers whose memory is compared, by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.optimizer import SGDSaI

from .by_role import RULES, MuonWithAdamW, groups_by_role
from .state_allocation import OptimizerFactory

StateDtype = torch.dtype | Literal["int4"]
STATE_DTYPES: Mapping[str, StateDtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": "int4",
}


@dataclass(frozen=True)
class Package:
    """Hold where an optimizer comes from that neither torch nor this package has.

    Args:
        name: on the package index.
        module: that it installs.
        formula: the tensors that the optimizer keeps for a parameter, which serve
            where the package is not installed or cannot step the model.
    """

    name: str
    module: str
    formula: Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class OptimizerChoice:
    """Hold how an optimizer is built for a model.

    Args:
        label: its name in tables.
        factory: from the model, whose modules, names and sizes some optimizers want to
            know, to a factory.
        package: that it comes from, None for torch and this one.
    """

    label: str
    factory: Callable[[nn.Module], OptimizerFactory]
    package: Package | None = None


def _plain(
    build: Callable[..., Optimizer], **options: object
) -> Callable[[nn.Module], OptimizerFactory]:
    return lambda _: lambda params: build(params, **options)


def _by_role(
    rule: str, state_dtype: StateDtype | None = None
) -> Callable[[nn.Module], OptimizerFactory]:
    return lambda model: (
        lambda params: SGDSaI(
            groups_by_role(model, params, rule), state_dtype=state_dtype
        )
    )


def _imported(module: str, name: str) -> Callable[[nn.Module], OptimizerFactory]:
    return lambda _: getattr(importlib.import_module(module), name)


def adam_mini(model: nn.Module, **options: object) -> OptimizerFactory:
    """Return a factory of Adam-mini, which wants to know names and sizes.

    Args:
        model: whose names and config count; the parameters that the factory gets are
            its trainable ones, in their order.
        **options: further arguments.
    """
    build = importlib.import_module("adam_mini").Adam_mini
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 1)
    sizes = {
        "dim": getattr(config, "hidden_size", 1),
        "n_heads": heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", heads),
    }
    return lambda params: build(
        list(zip(names, params, strict=True)), verbose=False, **sizes, **options
    )


def _adam_mini_formula(param: Tensor) -> list[Tensor]:
    """Keep m, and one v for each row of a matrix: an upper bound."""
    rows = param.shape[0] if param.dim() > 0 else 1
    return [torch.empty_like(param), param.new_empty(rows)]


def _copies(count: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda param: [torch.empty_like(param) for _ in range(count)]


CHOICES: dict[str, OptimizerChoice] = {
    "adamw": OptimizerChoice("AdamW", _plain(torch.optim.AdamW)),
    "sgdm": OptimizerChoice("SGDM", _plain(torch.optim.SGD, momentum=0.9)),
    "adafactor": OptimizerChoice("Adafactor", _plain(torch.optim.Adafactor)),
    "lion": OptimizerChoice(
        "Lion",
        _imported("lion_pytorch", "Lion"),
        Package("lion-pytorch", "lion_pytorch", _copies(1)),
    ),
    "adam-mini": OptimizerChoice(
        "Adam-mini", adam_mini, Package("adam-mini", "adam_mini", _adam_mini_formula)
    ),
    "prodigy": OptimizerChoice(
        "Prodigy",
        _imported("prodigyopt", "Prodigy"),
        Package("prodigyopt", "prodigyopt", _copies(4)),
    ),
    "muon": OptimizerChoice(
        "Muon + AdamW", lambda model: lambda params: MuonWithAdamW(model, params)
    ),
    "sgdsai": OptimizerChoice("SGD-SaI", _plain(SGDSaI)),
    **{
        f"sgdsai-{rule}": OptimizerChoice(f"SGD-SaI {rule}", _by_role(rule))
        for rule in RULES
    },
}
# What has a row for each dtype of its momentum.
SGDSAI = ("sgdsai", *(f"sgdsai-{rule}" for rule in RULES))
COMPARED = ("adamw", "sgdm", "adam-mini", "prodigy", "sgdsai")


def sgdsai_with(name: str, state_dtype: str) -> OptimizerChoice:
    """Return SGD-SaI with momentum of a dtype.

    Args:
        name: one of :data:`SGDSAI`.
        state_dtype: a key of :data:`STATE_DTYPES`.
    """
    rule = name.removeprefix("sgdsai").removeprefix("-")
    label = f"{rule or 'SGD-SaI'} {state_dtype.replace('bfloat', 'bf')}"
    kind = STATE_DTYPES[state_dtype]
    factory = _by_role(rule, kind) if rule else _plain(SGDSaI, state_dtype=kind)
    return replace(CHOICES[name], label=label, factory=factory)


def is_installed(choice: OptimizerChoice) -> bool:
    """Tell whether the package of an optimizer is installed.

    Args:
        choice: the optimizer.
    """
    package = choice.package
    return package is None or importlib.util.find_spec(package.module) is not None


def formula_factory(package: Package) -> OptimizerFactory:
    """Return a factory whose optimizers allocate what a package's formula says.

    Args:
        package: whose formula counts.
    """
    return lambda params: _FormulaOptimizer(params, package.formula)


class _FormulaOptimizer(Optimizer):
    """Allocate a formula's tensors as state."""

    def __init__(
        self, params: list[nn.Parameter], formula: Callable[[Tensor], list[Tensor]]
    ) -> None:
        super().__init__(params, {})
        self._formula = formula

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["tensors"] = self._formula(param)
