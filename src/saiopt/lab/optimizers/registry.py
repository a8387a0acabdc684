"""The names under which recipes and commands know the optimizers."""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from saiopt.choices import require_known
from saiopt.lab.optimizers import (
    adam_mini,
    by_role,
    low_rank,
    muon,
    muon_by_role,
    scaled_once,
)
from saiopt.lab.optimizers.spec import OptimizerSpec
from saiopt.optimizer import decay_groups
from saiopt.optimizer.options import STATE_DTYPES


def grouped(module: str, name: str) -> Callable[..., Optimizer]:
    """Return what builds an optimizer of which all parameters but 1-D ones decay.

    Args:
        module: Imported when the optimizer is built, since it may be missing.
        name: Of the class in it, which takes ``lr`` and settings by keyword.

    Returns:
        A ``build`` as :class:`OptimizerSpec` describes it.
    """

    def build(
        model: nn.Module, lr: float, weight_decay: float, **settings: object
    ) -> Optimizer:
        kind = getattr(importlib.import_module(module), name)
        return kind(decay_groups(model, weight_decay), lr=lr, **settings)

    return build


def _sgd(
    model: nn.Module, lr: float, weight_decay: float, *, momentum: float
) -> Optimizer:
    # Coupled decay passes through the momentum buffer, which multiplies it by
    # 1/(1-momentum); this undoes it, so that a step decays by lr * weight_decay.
    coupled = weight_decay * (1 - momentum)
    return grouped("torch.optim", "SGD")(model, lr, coupled, momentum=momentum)


_RELEASE = "defaults of the authors' release 1.0.3"
_GPT3 = "Brown et al. 2020 (GPT-3), appendix B"

_adamw = grouped("torch.optim", "AdamW")
_ADAMW_SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8}
_LOW_BITS = [name for name in STATE_DTYPES if name != "float32"]


def _sai(scaling: str, source: str = _RELEASE) -> OptimizerSpec:
    return OptimizerSpec(
        scaled_once.sgdsai,
        {"momentum": 0.9, "eps": 1e-8, "scaling": scaling},
        source,
        is_ours=True,
        # Algorithm 1 divides by the largest g-SNR of all gradients.
        steps_in_backward=scaling != "gsnr_max",
    )


def _by_role(rule: str, source: str) -> OptimizerSpec:
    return OptimizerSpec(
        by_role.by_role,
        {"rule": rule, "momentum": 0.9, "rest": 1.0},
        source,
        rule,
        is_ours=True,
        by_state_dtype=True,
        steps_in_backward=True,
    )


def _in_dtypes(
    name: str, spec: OptimizerSpec, state_dtypes: Iterable[str] = _LOW_BITS
) -> dict[str, OptimizerSpec]:
    """Return an entry with momentum of each of some dtypes, by name."""
    return {
        f"{name}-{short}": dataclasses.replace(
            spec,
            settings={**spec.settings, "state_dtype": state_dtype},
            source=f"as {name}, with momentum in {state_dtype}",
            label=f"{spec.label or name} {short}",
            lr_of=name,
            by_state_dtype=False,
        )
        for state_dtype in state_dtypes
        for short in [state_dtype.replace("bfloat", "bf")]
    }


_SGDSAI = dataclasses.replace(_sai("gsnr"), label="SGD-SaI", by_state_dtype=True)
_ORTHOGONAL = _by_role(
    "orthogonal", "ours: Muon on a balanced momentum, factored scales for the rest"
)
_FACTORED = _by_role("factored", "ours: Adafactor's second moment, measured once")

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgdsai": _SGDSAI,
    "sgdsai-sqrt-numel": _sai("sqrt_numel"),
    **_in_dtypes("sgdsai", _SGDSAI),
    "sgdsai-orthogonal": _ORTHOGONAL,
    **_in_dtypes("sgdsai-orthogonal", _ORTHOGONAL),
    "sgdsai-factored": _FACTORED,
    **_in_dtypes("sgdsai-factored", _FACTORED),
    "sgdm-decoupled": _sai("none", "as sgdsai, with every scale 1"),
    "adamw": OptimizerSpec(_adamw, _ADAMW_SETTINGS, _GPT3, "AdamW"),
    "sgd": OptimizerSpec(_sgd, {"momentum": 0.9}, "the usual momentum", "SGDM"),
    "sgdsai-gsnr-max": _sai("gsnr_max", "Xu et al. 2024, Algorithm 1"),
    "sgdsai-shuffled": OptimizerSpec(
        scaled_once.shuffled,
        {"momentum": 0.9, "eps": 1e-8},
        "as sgdsai, the scales permuted among the blocks by the run's seed",
        is_ours=True,
        seeded=True,
    ),
    "adam": OptimizerSpec(
        grouped("torch.optim", "Adam"),
        {"betas": (0.9, 0.95), "eps": 1e-8},
        "as adamw, with coupled decay, none unless it is given",
        penalizes=True,
    ),
    # Its step is relative to the size of the weights, and η is at most 1/√t.
    "adafactor": OptimizerSpec(
        grouped("torch.optim", "Adafactor"),
        {"beta2_decay": -0.8, "d": 1.0},
        "Shazeer and Stern 2018, section 9, without first moment",
        "Adafactor",
        shards=False,
    ),
    "muon": OptimizerSpec(
        muon.muon,
        {"momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8},
        "Jordan et al. 2024; update size of Liu et al. 2025, section 2.2",
        "Muon + AdamW",
    ),
    "muon-factored": OptimizerSpec(
        muon_by_role.muon_factored,
        {"momentum": 0.9, "momentum_of_rest": 0.9, "rest": 1.0},
        "as muon, for what sgdsai-orthogonal steps so; the rest as sgdsai-orthogonal",
        is_ours=True,
        shards=False,
    ),
    "muon-adamw": OptimizerSpec(
        muon_by_role.muon_adamw,
        {
            "momentum": 0.9,
            **_ADAMW_SETTINGS,
            "embedding": 4.0,
            "head": 1.0,
            "vector": 1.0,
            "rest": 1.0,
        },
        "as muon, for what sgdsai-orthogonal steps so; a multiplier of lr by role",
        shards=False,
    ),
    "adamw-by-role": OptimizerSpec(
        muon_by_role.adamw_by_role,
        {**_ADAMW_SETTINGS, "embedding": 4.0},
        "as adamw, with a multiplier of lr for embeddings",
    ),
    "lion": OptimizerSpec(
        grouped("lion_pytorch", "Lion"),
        {"betas": (0.9, 0.99)},
        "Chen et al. 2023, Algorithm 2",
        "Lion",
        package="lion-pytorch",
    ),
    # A step decays a weight by d·η·λ, where d is what Prodigy estimates.
    "prodigy": OptimizerSpec(
        grouped("prodigyopt", "Prodigy"),
        {"betas": (0.9, 0.999), "eps": 1e-8},
        "defaults of its authors' package",
        "Prodigy",
        package="prodigyopt",
        shards=False,
        estimates_size=True,
    ),
    "adam-mini": OptimizerSpec(
        adam_mini.adam_mini,
        {"betas": (0.9, 0.95), "eps": 1e-8},
        "as adamw",
        "Adam-mini",
        package="adam-mini",
        revision=1,
    ),
    # Evaluates an average; what decays is where the gradients are taken.
    "schedule-free-adamw": OptimizerSpec(
        grouped("schedulefree", "AdamWScheduleFree"),
        {"betas": (0.9, 0.95), "eps": 1e-8},
        "β₁ of its authors' package, β₂ as adamw; the learning rate stays constant",
        package="schedulefree",
        schedule="constant",
    ),
    **{
        f"{name}-frozen-a": OptimizerSpec(
            low_rank.without_a(build),
            settings,
            f"as {name}, A never moves; LoRA only",
            is_ours=is_ours,
            revision=1,
        )
        for name, build, settings, is_ours in (
            ("sgdsai", scaled_once.sgdsai, _SGDSAI.settings, True),
            ("adamw", _adamw, _ADAMW_SETTINGS, False),
        )
    },
    "scaled-gd": OptimizerSpec(
        low_rank.scaled_gd,
        {"delta": 1e-6},
        "Zhang and Pilanci 2024; LoRA only",
        shards=False,
    ),
    "scaled-adamw": OptimizerSpec(
        low_rank.scaled_adamw,
        {"betas": (0.7, 0.8), "eps": 1e-6, "delta": 1e-6},
        "Zhang and Pilanci 2024, on E2E, with an ε of our own; LoRA only",
        shards=False,
    ),
}


def get_optimizer(name: str) -> OptimizerSpec:
    """Return an optimizer's entry by its name.

    Args:
        name: A key of ``OPTIMIZERS``.

    Returns:
        The entry.

    Raises:
        ValueError: If there is no such optimizer.
    """
    require_known("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Build an optimizer by its name.

    Args:
        name: A key of ``OPTIMIZERS``.
        model: What is trained.
        lr: η.
        weight_decay: λ.
        seed: Of the run, for what is drawn at random.
        settings: Instead of those of its entry.

    Returns:
        The optimizer.

    Raises:
        ValueError: If there is no such optimizer, or none for such a model.
    """
    return get_optimizer(name).make(model, lr, weight_decay, seed, settings)


def variants(name: str, state_dtypes: Iterable[str]) -> dict[str, OptimizerSpec]:
    """Return an optimizer's entries with each of some dtypes of the momentum.

    Args:
        name: A key of ``OPTIMIZERS``.
        state_dtypes: Names of dtypes, which count where the entry takes one.

    Returns:
        By name, such as ``sgdsai-bf16``, or the entry alone.

    Raises:
        ValueError: If there is no such optimizer.
    """
    spec = get_optimizer(name)
    return _in_dtypes(name, spec, state_dtypes) if spec.by_state_dtype else {name: spec}
