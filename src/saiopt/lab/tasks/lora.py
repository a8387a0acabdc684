"""Low-rank adapters on a frozen model."""

from collections.abc import Sequence

from peft import LoraConfig, inject_adapter_in_model
from torch import nn


def add_lora(
    model: nn.Module, layers: Sequence[str], rank: int, alpha: int, dropout: float = 0.0
) -> nn.Module:
    """Freeze a model and put adapters beside some of its layers, in place.

    W x becomes W x + (alpha/r) B A x, with B = 0 at first, so that the first gradient
    of A is exactly zero.

    Args:
        model: Any model of transformers or diffusers.
        layers: Ends of the names of the layers to adapt.
        rank: r.
        alpha: Scale of an adapter's output, times r.
        dropout: Share of an adapter's inputs that training sets to zero.

    Returns:
        ``model``; only A, drawn from torch's generator, and B require a gradient.

    References:
        Hu et al. 2022, section 4.1.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(layers),
        # GPT-2's layers keep their matrices transposed.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )
    return inject_adapter_in_model(config, model)
