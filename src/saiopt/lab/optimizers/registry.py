"""The names under which recipes and commands know the optimizers."""

from collections.abc import Iterator, Mapping
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
from saiopt.lab.optimizers.grouped import grouped, sgd
from saiopt.lab.optimizers.spec import OptimizerSpec

_RELEASE = "defaults of the authors' release 1.0.3"
_GPT3 = "Brown et al. 2020 (GPT-3), appendix B"

_LOW_BITS = {"bf16": "bfloat16", "int8": "int8", "int4": "int4"}

_adamw = grouped("torch.optim", "AdamW")
_ADAMW_SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8}


def _sai(scaling: str, source: str = _RELEASE) -> OptimizerSpec:
    settings = {"momentum": 0.9, "eps": 1e-8, "scaling": scaling}
    # Algorithm 1 divides by the largest g-SNR of all gradients.
    alone = scaling != "gsnr_max"
    return OptimizerSpec(scaled_once.sgdsai, settings, source, steps_in_backward=alone)


def _by_role(rule: str, source: str) -> Iterator[tuple[str, OptimizerSpec]]:
    """Yield SGD-SaI by roles, and with momentum in fewer bits."""
    name = f"sgdsai-{rule}"
    for suffix, state_dtype in {"": None, **_LOW_BITS}.items():
        short = {} if state_dtype is None else {"state_dtype": state_dtype}
        yield (
            f"{name}-{suffix}" if suffix else name,
            OptimizerSpec(
                by_role.by_role,
                {"rule": rule, "momentum": 0.9, "rest": 1.0, **short},
                f"as {name}, with momentum in {state_dtype}" if suffix else source,
                lr_of=name if suffix else None,
                steps_in_backward=True,
            ),
        )


OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgdsai": _sai("gsnr"),
    "sgdsai-sqrt-numel": _sai("sqrt_numel"),
    **{
        f"sgdsai-{suffix}": OptimizerSpec(
            scaled_once.sgdsai,
            {"momentum": 0.9, "eps": 1e-8, "scaling": "gsnr", "state_dtype": name},
            f"as sgdsai, with momentum in {name}",
            lr_of="sgdsai",
            steps_in_backward=True,
        )
        for suffix, name in _LOW_BITS.items()
    },
    **dict(
        _by_role(
            "orthogonal",
            "ours: Muon on a balanced momentum, factored scales for the rest",
        )
    ),
    **dict(_by_role("factored", "ours: Adafactor's second moment, measured once")),
    "sgdm-decoupled": _sai("none", "as sgdsai, with every scale 1"),
    "adamw": OptimizerSpec(_adamw, _ADAMW_SETTINGS, _GPT3),
    "sgd": OptimizerSpec(sgd, {"momentum": 0.9}, "the usual momentum"),
    "sgdsai-gsnr-max": _sai("gsnr_max", "Xu et al. 2024, Algorithm 1"),
    "sgdsai-shuffled": OptimizerSpec(
        scaled_once.shuffled,
        {"momentum": 0.9, "eps": 1e-8},
        "as sgdsai, the scales permuted among the blocks by the run's seed",
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
        shards=False,
    ),
    "muon": OptimizerSpec(
        muon.muon,
        {"momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8},
        "Jordan et al. 2024; update size of Liu et al. 2025, section 2.2",
    ),
    "muon-factored": OptimizerSpec(
        muon_by_role.muon_factored,
        {"momentum": 0.9, "momentum_of_rest": 0.9, "rest": 1.0},
        "as muon, for what sgdsai-orthogonal steps so; the rest as sgdsai-orthogonal",
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
        package="lion-pytorch",
    ),
    # A step decays a weight by d·η·λ, where d is what Prodigy estimates.
    "prodigy": OptimizerSpec(
        grouped("prodigyopt", "Prodigy"),
        {"betas": (0.9, 0.999), "eps": 1e-8},
        "defaults of its authors' package",
        package="prodigyopt",
        shards=False,
        estimates_size=True,
    ),
    "adam-mini": OptimizerSpec(
        adam_mini.adam_mini,
        {"betas": (0.9, 0.95), "eps": 1e-8},
        "as adamw",
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
            revision=1,
        )
        for name, build, settings in (
            ("sgdsai", scaled_once.sgdsai, _sai("gsnr").settings),
            ("adamw", _adamw, _ADAMW_SETTINGS),
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
    spec = get_optimizer(name)
    drawn = {"seed": seed} if spec.seeded else {}
    chosen = {**spec.settings, **(settings or {})}
    return spec.build(model, lr, weight_decay, **chosen, **drawn)
