"""Adam-mini, whose package partitions by parameter names."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.distributed.shards import is_sharded

# GPT-2's matrices, and names under which the package partitions as its paper does:
# query and key by heads, everything else by output neurons.
_GPT2_PARTS = {
    "attn.c_attn.weight": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attn.c_proj.weight": ("attn.o_proj",),
    "mlp.c_fc.weight": ("mlp.c_fc",),
    "mlp.c_proj.weight": ("mlp.c_proj",),
}


@dataclasses.dataclass(frozen=True)
class _Part:
    """Hold a stand-in for some columns of a matrix that is stored transposed."""

    stand_in: nn.Parameter
    whole: Tensor
    columns: slice

    def of(self, tensor: Tensor) -> Tensor:
        return tensor[:, self.columns].t()

    def lend(self) -> None:
        self.stand_in.copy_(self.of(self.whole))
        grad = self.whole.grad
        self.stand_in.grad = None if grad is None else self.of(grad).contiguous()

    def give_back(self) -> None:
        self.of(self.whole).copy_(self.stand_in)
        self.stand_in.grad = None


def adam_mini(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """Build Adam-mini, which keeps one second moment per row, head or tensor.

    The package partitions by parameter names and takes rows for output neurons. GPT-2's
    matrices have rows of inputs, and query, key and value side by side: the package
    gets them apart and transposed. Tensors that are no matrices and no biases keep one
    second moment, since its rule for rows fails on them. So do matrices with names that
    it does not know.

    Args:
        model: What is trained; a transformers model tells its width and heads.
        lr: η.
        weight_decay: λ.
        betas: β₁ and β₂.
        eps: ε.

    Returns:
        The optimizer.

    Raises:
        ValueError: If GPT-2's matrices are sharded.
    """
    from adam_mini import Adam_mini

    config = getattr(model, "config", None)
    parts = dict(_gpt2_parts(model))
    wholes = {part.whole for part in parts.values()}
    optimizer = Adam_mini(
        [
            *((name, part.stand_in) for name, part in parts.items()),
            *((name, p) for name, p in _partition_names(model) if p not in wholes),
        ],
        lr=lr,
        betas=betas,
        eps=eps,
        dim=getattr(config, "hidden_size", 1),
        n_heads=getattr(config, "num_attention_heads", 1),
        verbose=False,
    )
    optimizer.embd_names.add("wpe")
    optimizer.output_names.add("classifier")
    # It would reduce over all GPUs that it sees, whether or not they train together.
    optimizer.world_size = 1
    for group in optimizer.param_groups:
        [param] = group["params"]
        group["weight_decay"] = weight_decay if param.dim() >= 2 else 0.0

    @torch.no_grad()
    def lend(*_: object) -> None:
        for part in parts.values():
            part.lend()

    @torch.no_grad()
    def give_back(*_: object) -> None:
        for part in parts.values():
            part.give_back()

    optimizer.register_step_pre_hook(lend)
    optimizer.register_step_post_hook(give_back)
    return optimizer


def _gpt2_parts(model: nn.Module) -> Iterator[tuple[str, _Part]]:
    for module_name, module in model.named_modules():
        if type(module).__name__ != "Conv1D":
            continue
        weight = module.get_parameter("weight")
        if is_sharded(weight):
            raise ValueError(
                "strategy must be ddp with adam-mini on GPT-2, whose matrices it takes "
                "apart"
            )
        for ending, names in _GPT2_PARTS.items():
            layer, found, _ = f"{module_name}.weight".rpartition(ending)
            if not found:
                continue
            width = weight.shape[1] // len(names)
            for i, name in enumerate(names):
                columns = slice(i * width, (i + 1) * width)
                stand_in = nn.Parameter(weight.detach()[:, columns].t().contiguous())
                yield f"{layer}{name}.weight", _Part(stand_in, weight, columns)


def _partition_names(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for index, (name, param) in enumerate(model.named_parameters()):
        is_known = param.dim() == 2 or name.endswith("bias")
        yield (name if is_known else f"tensor.{index}"), param
