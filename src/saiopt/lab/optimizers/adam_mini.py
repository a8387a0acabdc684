"""Adam-mini, whose package partitions by parameter names."""

from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer


def adam_mini(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """Build Adam-mini, which keeps one second moment per row, head or tensor.

    The package partitions by parameter names. Tensors that are no matrices and no
    biases keep one second moment, since its rule for rows fails on them. So do
    matrices with names that it does not know, such as GPT-2's joint query, key, value.

    Args:
        model: What is trained; a transformers model tells its width and heads.
        lr: η.
        weight_decay: λ.
        betas: β₁ and β₂.
        eps: ε.

    Returns:
        The optimizer.
    """
    from adam_mini import Adam_mini

    config = getattr(model, "config", None)
    optimizer = Adam_mini(
        _partition_names(model),
        lr=lr,
        betas=betas,
        eps=eps,
        dim=getattr(config, "hidden_size", 1),
        n_heads=getattr(config, "num_attention_heads", 1),
        verbose=False,
    )
    optimizer.output_names.add("classifier")
    # It would reduce over all GPUs that it sees, whether or not they train together.
    optimizer.world_size = 1
    for group in optimizer.param_groups:
        [param] = group["params"]
        group["weight_decay"] = weight_decay if param.dim() >= 2 else 0.0
    return optimizer


def _partition_names(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for index, (name, param) in enumerate(model.named_parameters()):
        is_known = param.dim() == 2 or name.endswith("bias")
        yield (name if is_known else f"tensor.{index}"), param
