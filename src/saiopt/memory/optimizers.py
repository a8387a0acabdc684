"""The optimizers whose memory is compared, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.optimizer import SGDSaI

from .state_allocation import OptimizerFactory

StateDtype = torch.dtype | str
STATE_DTYPES: Mapping[str, StateDtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": "int4",
}


@dataclass(frozen=True)
class OptimizerChoice:
    """Hold how an optimizer is built for a model.

    Args:
        label: its name in tables.
        factory: from the model, whose names and sizes some optimizers want to know, to
            a factory.
        package: the package on the index that it comes from, None for torch and this
            one.
        formula: the tensors that it keeps for a parameter, which serve where its
            package is not installed.
    """

    label: str
    factory: Callable[[nn.Module], OptimizerFactory]
    package: str | None = None
    formula: Callable[[Tensor], list[Tensor]] | None = None


def _plain(build: Callable[..., Optimizer], **options: Any) -> Any:
    return lambda _: lambda params: build(params, **options)


def _lion(_: nn.Module) -> OptimizerFactory:
    from lion_pytorch import Lion

    return Lion


def _prodigy(_: nn.Module) -> OptimizerFactory:
    from prodigyopt import Prodigy

    return Prodigy


def _adam_mini(model: nn.Module) -> OptimizerFactory:
    from adam_mini import Adam_mini

    names = [name for name, p in model.named_parameters() if p.requires_grad]
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 1)
    sizes = {
        "dim": getattr(config, "hidden_size", 1),
        "n_heads": heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", heads),
    }
    # A list: Adam-mini prints its warnings and keeps what it is given.
    return lambda params: Adam_mini(
        list(zip(names, params, strict=True)), verbose=False, **sizes
    )


def _adam_mini_formula(param: Tensor) -> list[Tensor]:
    """Keep m, and one v for each row of a matrix: an upper bound, off by < 0.1 %."""
    rows = param.shape[0] if param.dim() > 0 else 1
    return [torch.empty_like(param), param.new_empty(rows)]


def _prodigy_formula(param: Tensor) -> list[Tensor]:
    return [torch.empty_like(param) for _ in range(4)]


CHOICES: Mapping[str, OptimizerChoice] = {
    "adamw": OptimizerChoice("AdamW", _plain(torch.optim.AdamW)),
    "sgdm": OptimizerChoice("SGDM", _plain(torch.optim.SGD, momentum=0.9)),
    "adafactor": OptimizerChoice("Adafactor", _plain(torch.optim.Adafactor)),
    "lion": OptimizerChoice(
        "Lion", _lion, "lion-pytorch", lambda p: [torch.empty_like(p)]
    ),
    "adam-mini": OptimizerChoice(
        "Adam-mini", _adam_mini, "adam-mini", _adam_mini_formula
    ),
    "prodigy": OptimizerChoice("Prodigy", _prodigy, "prodigyopt", _prodigy_formula),
    "sgdsai": OptimizerChoice("SGD-SaI", _plain(SGDSaI)),
}
COMPARED = ("adamw", "sgdm", "adam-mini", "prodigy", "sgdsai")


def sgdsai_with(state_dtype: str) -> OptimizerChoice:
    """Return SGD-SaI with momentum of a dtype.

    Args:
        state_dtype: a key of :data:`STATE_DTYPES`.
    """
    label = f"SGD-SaI {state_dtype.replace('bfloat', 'bf')}"
    return OptimizerChoice(
        label, _plain(SGDSaI, state_dtype=STATE_DTYPES[state_dtype])
    )


def factory_for(
    choice: OptimizerChoice, model: nn.Module
) -> tuple[OptimizerFactory, str | None]:
    """Return an optimizer's factory, or one that follows its formula.

    Args:
        choice: the optimizer.
        model: the model that it is to train.

    Returns:
        The factory, and a sentence where the formula stands in for the package.
    """
    module = {"adam-mini": "adam_mini", "lion-pytorch": "lion_pytorch"}
    package = choice.package
    if package is None or importlib.util.find_spec(module.get(package, package)):
        return choice.factory(model), None
    formula = choice.formula
    assert formula is not None
    return (
        lambda params: _FormulaOptimizer(params, formula),
        f"{choice.label} by formula: {package} is not installed",
    )


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
