"""Pre-trained models by their name on the hub or their folder."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from saiopt.lab.data.published_data import read_checkpoint


def language_model(source: str) -> tuple[Callable[[], nn.Module], Any]:
    """Find a causal language model and its tokenizer, under ``task.model``.

    Args:
        source: Its name on the hub, or its folder.

    Returns:
        As :func:`causal_model` with float32 weights; and its tokenizer.
    """
    from transformers import AutoTokenizer

    build = causal_model(source, "model", torch.float32)
    return build, read_checkpoint(source, "model", AutoTokenizer.from_pretrained)


def causal_model(
    source: str, field: str, dtype: torch.dtype
) -> Callable[[], nn.Module]:
    """Find a causal language model.

    Args:
        source: Its name on the hub, or its folder.
        field: The task's field that names it.
        dtype: Of its weights; each is converted as it is read.

    Returns:
        A function that builds it, with its weights unless it is built on the meta
        device.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_checkpoint(source, field, AutoConfig.from_pretrained)
    config.use_cache = False

    def build() -> nn.Module:
        if torch.get_default_device().type == "meta":
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        return read_checkpoint(
            source,
            field,
            lambda name: AutoModelForCausalLM.from_pretrained(
                name, config=copy.deepcopy(config), dtype=dtype
            ),
        )

    return build
