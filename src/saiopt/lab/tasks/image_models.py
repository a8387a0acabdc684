"""Image classifiers of transformers, built from their configs."""

from typing import cast

from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)


def vision_transformer(
    classes: int, side: int, patch: int, width: int, layers: int, heads: int
) -> nn.Module:
    """Build a ViT without dropout, whose MLP is four times as wide.

    Args:
        classes: What it tells apart.
        side: Pixels along an image's side; of one channel up to 8, else of three.
        patch: Pixels along a patch's side.
        width: Entries per token.
        layers: Transformer blocks.
        heads: Attention heads.

    Returns:
        The model, its weights drawn from torch's generator.
    """
    config = ViTConfig(
        image_size=side,
        num_channels=1 if side <= 8 else 3,
        patch_size=patch,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = classes
    return ViTForImageClassification._from_config(config)


def small_stem_resnet(
    classes: int, channels: int, widths: list[int], blocks: int
) -> nn.Module:
    """Build a ResNet of basic blocks for images of few pixels.

    Deviates from the published network in its stem, as all do on CIFAR-10: one 3x3
    convolution of stride 1 and no pooling, where the original halves the sides twice.

    Args:
        classes: What it tells apart.
        channels: Of an image.
        widths: Channels of each stage; every stage after the first halves the sides.
        blocks: Residual blocks per stage.

    Returns:
        The model, its weights drawn from torch's generator.

    References:
        He et al. 2016, section 4.2.
    """
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=[blocks] * len(widths),
        layer_type="basic",
    )
    config.num_labels = classes
    model = ResNetForImageClassification._from_config(config)
    stem = model.resnet.embedder
    convolution = nn.Conv2d(channels, widths[0], kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    cast("nn.Module", stem.embedder).convolution = convolution
    stem.register_module("pooler", nn.Identity())
    return model
