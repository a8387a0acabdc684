"""Pre-trained models by their name on the hub or their folder."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from saiopt.lab.published_data import read_checkpoint


def language_model(source: str) -> tuple[Callable[[], nn.Module], Any]:
    """Find a causal language model.

    Args:
        source: Its name on the hub, or its folder.

    Returns:
        A function that builds it, with its weights unless it is built on the meta
        device; and its tokenizer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = read_checkpoint(source, "model", AutoConfig.from_pretrained)
    config.use_cache = False
    tokenizer = read_checkpoint(source, "model", AutoTokenizer.from_pretrained)

    def build() -> nn.Module:
        if torch.get_default_device().type == "meta":
            return AutoModelForCausalLM.from_config(copy.deepcopy(config))
        return read_checkpoint(
            source,
            "model",
            lambda name: AutoModelForCausalLM.from_pretrained(
                name, config=copy.deepcopy(config), dtype=torch.float32
            ),
        )

    return build, tokenizer
