"""The optimizers whose steps are timed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from saiopt.lab.optimizers import OPTIMIZERS, OptimizerSpec, set_mode, variants
from saiopt.lab.optimizers.registry import grouped
from saiopt.optimizer.options import STATE_DTYPES

# So small that no rule moves a weight far in any number of steps; what finds the size
# of its steps wants 1.
_LR = 1e-6
_DECAY = 0.1
EXECUTIONS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"fused": True},
}
# What is timed only here.
_TIMED_ONLY = {
    "sgd-sai": OptimizerSpec(
        grouped("sgd_sai", "SGD_sai"),
        {},
        "the authors' release",
        "sgd-sai (authors)",
        package="sgd-sai",
    ),
    "pytorch-optimizer": OptimizerSpec(
        grouped("pytorch_optimizer", "SGDSaI"),
        {},
        "defaults of the package",
        "pytorch_optimizer SaI",
        package="pytorch-optimizer",
    ),
    "adamw-8bit": OptimizerSpec(
        grouped("torchao.optim", "AdamW8bit"),
        {},
        "defaults of the package",
        "torchao AdamW 8-bit",
        package="torchao",
    ),
}


@dataclass(frozen=True)
class Candidate:
    """Hold an optimizer in one execution.

    Args:
        label: its name in tables.
        spec: how the lab builds it.
        execution: flags of its param groups, none for its own choice.
    """

    label: str
    spec: OptimizerSpec
    execution: Mapping[str, bool] = field(default_factory=dict)

    def build(self, model: nn.Module) -> Optimizer:
        """Build the optimizer as the lab trains a model with it.

        One gradient is measured at most, so that the steps that are timed after it are
        ordinary.

        Args:
            model: whose parameters are stepped.

        Returns:
            The optimizer.
        """
        lr = 1.0 if self.spec.estimates_size else _LR
        optimizer = self.spec.make(model, lr, _DECAY, seed=0)
        for group in optimizer.param_groups:
            group.update(self.execution)
            if "calibration_steps" in group:
                group["calibration_steps"] = 1
        set_mode(optimizer, training=True)
        return optimizer


def candidates() -> dict[str, Candidate]:
    """Return all candidates by name: the usual ones, and what else the lab trains with.

    Returns:
        Names are the lab's, with an execution behind some.
    """
    found = usual()
    for name in OPTIMIZERS:
        specs = {name: OPTIMIZERS[name], **variants(name, STATE_DTYPES)}
        found |= {key: _candidate(key, spec) for key, spec in specs.items()}
    return found


def usual() -> dict[str, Candidate]:
    """Return the candidates that run where none is asked for.

    None of them steps whole matrices, which takes seconds on a CPU.

    Returns:
        By name: ours, torch's, then other packages'.
    """
    executed = {name: OPTIMIZERS[name] for name in ("sgd", "adamw")}
    rivals = {name: OPTIMIZERS[name] for name in ("lion", "prodigy", "adam-mini")}
    found = _executions(variants("sgdsai", STATE_DTYPES))
    by_role = variants("sgdsai-factored", STATE_DTYPES)
    found |= {name: _candidate(name, spec) for name, spec in by_role.items()}
    found |= _executions(executed)
    others = {**_TIMED_ONLY, **rivals}
    return found | {name: _candidate(name, spec) for name, spec in others.items()}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what some packages print while they step from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _executions(specs: Mapping[str, OptimizerSpec]) -> dict[str, Candidate]:
    """Return optimizers in each execution that their param groups can ask for."""
    return {
        f"{name}-{kind}": _candidate(name, spec, kind, flags)
        for name, spec in specs.items()
        for execution, flags in EXECUTIONS.items()
        for kind in ["reference" if spec.is_ours and execution == "loop" else execution]
    }


def _candidate(
    name: str,
    spec: OptimizerSpec,
    kind: str = "",
    flags: Mapping[str, bool] | None = None,
) -> Candidate:
    words = [spec.label or name, kind]
    if spec.is_ours and spec.label:
        # The dtype of the momentum comes last, and a table has 80 columns.
        own = spec.label.replace("SGD-SaI", "").replace("orthogonal", "orthog.")
        words = ["saiopt", kind, own.strip()]
    return Candidate(" ".join(filter(None, words)), spec, flags or {})
