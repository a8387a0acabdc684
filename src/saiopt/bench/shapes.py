"""The parameters that are stepped: a real model's shapes, filled with noise."""

from __future__ import annotations

import torch
from torch import nn

from saiopt.choices import asking
from saiopt.lab.model_memory.models import (
    KNOWN_MODELS,
    build_model,
    put_parameters,
)

TINY = "tiny"
_WEIGHT_STD = 0.02
_GRADIENT_STD = 1e-3


def skeleton(shapes: str) -> nn.Module:
    """Build the model whose parameters' shapes are stepped.

    Args:
        shapes: ``tiny`` (half a megabyte, for trying things out), or whatever
            :func:`saiopt.lab.model_memory.models.build_model` takes.

    Returns:
        The model, without memory.

    Raises:
        ValueError: the name is unknown.
    """
    if shapes == TINY:
        return _tiny_model()
    try:
        return build_model(shapes)
    except ValueError as error:
        if not str(error).startswith("model must be one of"):
            raise
        known = ", ".join((TINY, *KNOWN_MODELS))
        raise ValueError(
            f"shapes must be one of {known}, a Hugging Face config.json or "
            f"package.module:callable, got {asking(shapes, (TINY, *KNOWN_MODELS))}"
        ) from error


def allocate(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give a model parameters of its shapes, with gradients.

    They are normal with standard deviation 0.02, and the gradients with standard
    deviation 1e-3; the same at every call.

    Args:
        model: whose parameters are replaced.
        dtype: of parameters and gradients.
        device: of both.
    """
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in (p.shape for p in model.parameters()):
        values = torch.empty(shape, dtype=dtype, device=device)
        param = nn.Parameter(values.normal_(std=_WEIGHT_STD, generator=generator))
        grad = torch.empty(shape, dtype=dtype, device=device)
        param.grad = grad.normal_(std=_GRADIENT_STD, generator=generator)
        params.append(param)
    put_parameters(model, params)


def _tiny_model() -> nn.Module:
    with torch.device("meta"):
        matrices = {
            "attn": nn.Linear(128, 384, bias=False),
            "mlp": nn.Linear(128, 512, bias=False),
        }
        return nn.ModuleDict(
            {
                "wte": nn.Embedding(64, 128),
                # Within a block, where neither is an output layer.
                "block": nn.ModuleDict(matrices),
                "norm": nn.RMSNorm(128),
            }
        )
