"""The optimizers whose steps are timed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import nn
from torch.optim import Optimizer

from saiopt.memory.by_role import MuonWithAdamW, groups_by_role
from saiopt.memory.optimizers import STATE_DTYPES, StateDtype, adam_mini
from saiopt.optimizer import SGDSaI

# So small that no rule moves a weight far in any number of steps.
_LR = 1e-6
_DECAY = 0.1
EXECUTIONS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"fused": True},
}

Build = Callable[[list[nn.Parameter], nn.Module], Optimizer]


@dataclass(frozen=True)
class Candidate:
    """Hold an optimizer in one execution.

    Args:
        label: its name in tables.
        build: from parameters, and the model whose names and sizes they have, to the
            optimizer.
        distribution: the package on the index that it comes from.
        module: that the package installs.
        by_default: whether it runs where none is asked for. A step of whole matrices
            takes seconds on a CPU.
    """

    label: str
    build: Build
    distribution: str
    module: str
    by_default: bool = True

    @property
    def is_installed(self) -> bool:
        """Tell whether its package is installed."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """Return the version of its package."""
        return version(self.distribution)

    @property
    def is_ours(self) -> bool:
        """Tell whether it is this package's own."""
        return self.module == "saiopt"


def candidates() -> dict[str, Candidate]:
    """Return all candidates by name: ours, torch's, then other packages'."""
    return {**_ours(), **_torch(), **_packages()}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what some packages print while they step from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _ours() -> dict[str, Candidate]:
    found = {}
    for kind, state_dtype in STATE_DTYPES.items():
        short = kind.replace("bfloat", "bf")
        for execution, flags in EXECUTIONS.items():
            name = "reference" if execution == "loop" else execution
            build = _plain(SGDSaI, state_dtype=state_dtype, **flags)
            found[f"sgdsai-{name}-{short}"] = Candidate(
                f"saiopt {name} {short}", build, "saiopt", "saiopt"
            )
        for rule, label in (("orthogonal", "orthog."), ("factored", "factored")):
            build = _by_role(rule, state_dtype)
            usual = rule != "orthogonal"
            found[f"sgdsai-{rule}-{short}"] = Candidate(
                f"saiopt {label} {short}", build, "saiopt", "saiopt", usual
            )
    return found


def _by_role(rule: str, state_dtype: StateDtype) -> Build:
    # One gradient is measured, so that the steps that are timed after it are ordinary.
    return lambda params, model: SGDSaI(
        groups_by_role(model, params, rule, _DECAY),
        lr=_LR,
        calibration_steps=1,
        state_dtype=state_dtype,
    )


def _torch() -> dict[str, Candidate]:
    found = {}
    for execution, flags in EXECUTIONS.items():
        sgd = _plain(torch.optim.SGD, momentum=0.9, **flags)
        adamw = _plain(torch.optim.AdamW, **flags)
        found[f"sgdm-{execution}"] = _of_torch(f"SGDM {execution}", sgd)
        found[f"adamw-{execution}"] = _of_torch(f"AdamW {execution}", adamw)
    found["muon"] = _of_torch("Muon + AdamW", _muon, by_default=False)
    return found


def _packages() -> dict[str, Candidate]:
    rows = [
        ("sgd-sai", "sgd-sai", "sgd_sai", "SGD_sai", {}),
        ("pytorch-optimizer", "pytorch-optimizer", "pytorch_optimizer", "SGDSaI", {}),
        ("lion", "lion-pytorch", "lion_pytorch", "Lion", {}),
        ("prodigy", "prodigyopt", "prodigyopt", "Prodigy", {"lr": 1.0}),
        ("adamw-8bit", "torchao", "torchao.optim", "AdamW8bit", {}),
    ]
    labels = {
        "sgd-sai": "sgd-sai (authors)",
        "pytorch-optimizer": "pytorch_optimizer SaI",
        "lion": "Lion",
        "prodigy": "Prodigy",
        "adamw-8bit": "torchao AdamW 8-bit",
    }
    found = {
        name: Candidate(
            labels[name],
            _imported(module, attribute, **options),
            distribution,
            module.partition(".")[0],
        )
        for name, distribution, module, attribute, options in rows
    }
    found["adam-mini"] = Candidate("Adam-mini", _adam_mini, "adam-mini", "adam_mini")
    return found


def _of_torch(label: str, build: Build, *, by_default: bool = True) -> Candidate:
    return Candidate(label, build, "torch", "torch", by_default)


def _plain(kind: Callable[..., Optimizer], **options: object) -> Build:
    settings = {"lr": _LR, "weight_decay": _DECAY, **options}
    return lambda params, _: kind(params, **settings)


def _imported(module: str, attribute: str, **options: object) -> Build:
    def build(params: list[nn.Parameter], model: nn.Module) -> Optimizer:
        kind = getattr(importlib.import_module(module), attribute)
        return _plain(kind, **options)(params, model)

    return build


def _muon(params: list[nn.Parameter], model: nn.Module) -> Optimizer:
    return MuonWithAdamW(model, params, lr=_LR, weight_decay=_DECAY)


def _adam_mini(params: list[nn.Parameter], model: nn.Module) -> Optimizer:
    return adam_mini(model, lr=_LR, weight_decay=_DECAY)(params)
