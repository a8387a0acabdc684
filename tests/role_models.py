"""Small models of many libraries, built from their configs, and their roles."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from models import TinyTransformer
from torch import nn

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {**SIZES, "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
UNET = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


def gpt2(**changed):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 8}
    tokens = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, **changed))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=1))


def bert(purpose):
    import transformers

    config = transformers.BertConfig(**TEXT, num_labels=3)
    return getattr(transformers, f"Bert{purpose}")(config)


def roberta_classifier():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(**TEXT, pad_token_id=1, num_labels=3)
    return RobertaForSequenceClassification(config)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=11, **sizes))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**SIZES, image_size=4, patch_size=2, num_labels=3)
    return ViTForImageClassification(config)


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    config = ResNetConfig(**widths, layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    counts = {"num_key_value_heads": 1, "num_local_experts": 3}
    return MixtralForCausalLM(MixtralConfig(**TEXT, **counts))


def gpt_oss():
    from transformers import GptOssConfig, GptOssForCausalLM

    counts = {"num_key_value_heads": 1, "num_local_experts": 3, "head_dim": 4}
    tokens = {"pad_token_id": 0, "rope_parameters": {"rope_type": "default"}}
    return GptOssForCausalLM(GptOssConfig(**TEXT, **counts, **tokens))


def unet():
    from diffusers import UNet2DModel

    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(**UNET, down_block_types=down, up_block_types=up)


def conditional_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **UNET,
        cross_attention_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def with_lora(model, **options):
    import peft

    with warnings.catch_warnings():
        # peft asks transformers by a word that is deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, peft.LoraConfig(r=2, **options))


def gpt2_with_lora():
    return with_lora(gpt2(), target_modules="all-linear", fan_in_fan_out=True)


def bert_classifier_with_lora():
    return with_lora(
        bert("ForSequenceClassification"), task_type="SEQ_CLS", target_modules=["query"]
    )


class TimmViT(nn.Module):
    """A vision transformer as timm writes it, without its forward."""

    def __init__(self, width=8, depth=2, patches=4, classes=5):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 2, 2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.blocks = nn.Sequential(*(_TimmBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)


class _TimmBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.gamma1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.gamma2 = nn.Parameter(torch.ones(width))


class Recurrent(nn.Module):
    """An LSTM and its output layer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.out = nn.Linear(4, 2)


def mlp():
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    # Tensors per role.
    expected: dict[str, int]


CASES = {
    "GPT-2, tied": Case(gpt2, {"tied": 1, "embedding": 1, "hidden": 8, "vector": 18}),
    "GPT-2, untied": Case(
        lambda: gpt2(tie_word_embeddings=False),
        {"embedding": 2, "head": 1, "hidden": 8, "vector": 18},
    ),
    "Llama": Case(llama, {"embedding": 1, "head": 1, "hidden": 14, "vector": 5}),
    "BERT, masked LM": Case(
        lambda: bert("ForMaskedLM"),
        {"tied": 1, "embedding": 2, "hidden": 13, "vector": 26},
    ),
    "BERT, classifier": Case(
        lambda: bert("ForSequenceClassification"),
        {"embedding": 3, "head": 1, "hidden": 13, "vector": 24},
    ),
    "BERT, no head": Case(
        lambda: bert("Model"), {"embedding": 3, "hidden": 13, "vector": 23}
    ),
    "RoBERTa, classifier": Case(
        roberta_classifier, {"embedding": 3, "head": 1, "hidden": 13, "vector": 24}
    ),
    "T5": Case(t5, {"tied": 1, "embedding": 2, "hidden": 32, "vector": 12}),
    "ViT": Case(vit, {"head": 1, "hidden": 13, "vector": 26}),
    "ViT as in timm": Case(TimmViT, {"head": 1, "hidden": 9, "vector": 26}),
    "ResNet": Case(resnet, {"head": 1, "hidden": 6, "vector": 13}),
    "Mixtral": Case(
        mixtral,
        {
            "embedding": 1,
            "head": 1,
            "hidden": 8,
            "stacked": 4,
            "vector": 5,
            "other": 2,
        },
    ),
    "GPT-OSS": Case(
        gpt_oss,
        {
            "embedding": 1,
            "head": 1,
            "hidden": 8,
            "stacked": 4,
            "vector": 21,
            "other": 2,
        },
    ),
    "UNet2DModel": Case(unet, {"head": 1, "hidden": 50, "vector": 93}),
    "UNet2DConditionModel": Case(
        conditional_unet, {"head": 1, "hidden": 82, "vector": 125}
    ),
    "GPT-2 with LoRA": Case(gpt2_with_lora, {"hidden": 16}),
    "BERT classifier with LoRA": Case(
        bert_classifier_with_lora, {"head": 1, "hidden": 4, "vector": 1}
    ),
    "nn.Transformer": Case(
        lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
        {"hidden": 20, "vector": 44},
    ),
    "nn.MultiheadAttention": Case(
        lambda: nn.MultiheadAttention(8, 2), {"hidden": 2, "vector": 2}
    ),
    "nn.MultiheadAttention, other keys": Case(
        lambda: nn.MultiheadAttention(8, 2, kdim=4, add_bias_kv=True),
        {"hidden": 4, "vector": 4},
    ),
    "Encoder, raw positions": Case(
        TinyTransformer,
        {"embedding": 1, "head": 1, "hidden": 4, "vector": 12, "other": 1},
    ),
    "MLP": Case(mlp, {"head": 1, "hidden": 2, "vector": 3}),
    "LSTM": Case(Recurrent, {"head": 1, "hidden": 2, "vector": 3}),
}
