"""Models by name, by Hugging Face config file or by import path, without weights."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saiopt.choices import asking

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """Hold what builds a well-known model from its config.

    Args:
        kind: Stem of the class names in transformers, such as ``GPT2``.
        head: Rest of the model's class name.
        num_params: Published count of parameters.
        config: Settings that differ from the config class's defaults.
    """

    kind: str
    head: str
    num_params: int
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _gpt2(num_params: int, width: int, depth: int, heads: int) -> KnownModel:
    config = {"n_embd": width, "n_layer": depth, "n_head": heads}
    return KnownModel("GPT2", "LMHeadModel", num_params, config)


def _llama(num_params: int, **config: int) -> KnownModel:
    untied = {"tie_word_embeddings": False, **config}
    return KnownModel("Llama", "ForCausalLM", num_params, untied)


def _vit(
    num_params: int, width: int, depth: int, heads: int, patch_size: int
) -> KnownModel:
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": patch_size,
        "num_labels": 1000,
    }
    return KnownModel("ViT", "ForImageClassification", num_params, config)


KNOWN_MODELS: Mapping[str, KnownModel] = {
    "gpt2": _gpt2(124_439_808, 768, 12, 12),
    "gpt2-medium": _gpt2(354_823_168, 1024, 24, 16),
    "gpt2-large": _gpt2(774_030_080, 1280, 36, 20),
    "gpt2-xl": _gpt2(1_557_611_200, 1600, 48, 25),
    "llama2-7b": _llama(
        6_738_415_616,
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
    ),
    "llama2-13b": _llama(
        13_015_864_320,
        vocab_size=32_000,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=40,
        num_attention_heads=40,
    ),
    "llama3-8b": _llama(
        8_030_261_248,
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "vit-s16": _vit(22_050_664, 384, 12, 6, 16),
    "vit-h14": _vit(632_045_800, 1280, 32, 16, 14),
    "resnet18": KnownModel(
        "ResNet",
        "ForImageClassification",
        11_689_512,
        {
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
            "layer_type": "basic",
            "num_labels": 1000,
        },
    ),
}


def build_model(name: str) -> nn.Module:
    """Build a model on the meta device.

    Args:
        name: A key of :data:`KNOWN_MODELS`; or a Hugging Face ``config.json``, whose
            dtype the weights take, or a folder with one; or
            ``package.module:callable``, where the callable takes no argument and
            returns a module. Modules of the working directory can be imported.

    Returns:
        The model, on the meta device unless a callable loads it elsewhere.

    Raises:
        ValueError: If the name is none of these, or does not lead to a model.
    """
    with torch.device("meta"):
        if name in KNOWN_MODELS:
            return _build_known(KNOWN_MODELS[name])
        path = Path(name)
        if path.exists():
            return _build_from_config(path / "config.json" if path.is_dir() else path)
        if ":" in name:
            return _build_from_callable(name)
    raise ValueError(
        f"model must be one of {', '.join(KNOWN_MODELS)}, a Hugging Face config.json "
        f"or package.module:callable, got {asking(name, KNOWN_MODELS)}"
    )


def put_parameters(model: nn.Module, params: Iterable[nn.Parameter]) -> None:
    """Put other parameters in the places of a model's own.

    Args:
        model: What is changed.
        params: One for each of the model's, in their order.
    """
    given = dict(zip(list(model.parameters()), params, strict=True))
    for module in model.modules():
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        for name, param in list(own):
            setattr(module, name, given[param])


def _build_known(known: KnownModel) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{known.kind}Config")(**known.config)
    return getattr(transformers, f"{known.kind}{known.head}")(config)


def _build_from_config(path: Path) -> nn.Module:
    import transformers

    try:
        values = json.loads(path.read_text())
        config = transformers.AutoConfig.for_model(**values)
        names = values.get("architectures") or ()
        known = [getattr(transformers, name, None) for name in names]
        if known and known[0] is not None:
            # What the auto classes call: a bare constructor ignores the config's dtype.
            return known[0]._from_config(config)
        return transformers.AutoModel.from_config(config)
    # A package that a model needs is not the file's fault.
    except ImportError:
        raise
    # A file can be wrong in as many ways as transformers has configs.
    except Exception as error:
        raise ValueError(
            "model must be a Hugging Face config.json that transformers can read, "
            f"got {path}: {_first_line(error)}"
        ) from error


def _build_from_callable(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(module_name), attribute)()
    # The user's own code may raise anything.
    except Exception as error:
        raise ValueError(
            "model must name a callable that can be imported and called without "
            f"arguments, got {name}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must name a callable that returns an nn.Module, got {name}, "
            f"which returns {type(model).__name__}"
        )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
