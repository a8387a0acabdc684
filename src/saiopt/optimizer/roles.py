"""Which part each parameter plays in its model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import parametrize

from saiopt.distributed.fsdp1 import is_slice

from . import options
from .wrappers import bare_model, bare_name

# The options of each role's group. The first of several roles of a parameter counts,
# and groups keep this order. What says no weight decay takes the user's.
ROLES: dict[str, dict[str, Any]] = {
    "tied": {"scaling": "factored", "lr_multiplier": 2.0},
    "embedding": {"scaling": "factored", "lr_multiplier": 4.0},
    "head": {"scaling": "factored", "lr_multiplier": 1.0},
    "hidden": {"scaling": "orthogonal", "lr_multiplier": 1.0},
    "stacked": {"scaling": "orthogonal", "lr_multiplier": 1.0, "stacked": True},
    "vector": {"scaling": "factored", "lr_multiplier": 1.0, "weight_decay": 0.0},
    "other": {"scaling": "factored", "lr_multiplier": 1.0},
}
# What orthogonal_groups takes as its `roles` to give all of them factored scales.
ALL_FACTORED: dict[str, dict[str, Any]] = {
    role: {"scaling": "factored", "stacked": False} for role in ROLES
}
RoleOf: TypeAlias = Callable[[str, nn.Parameter], str | None]

_FEWEST_DIMENSIONS = {"hidden": 2, "stacked": 3}
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Their `weight` maps inputs to outputs.
_MAPS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
# All matrices of these do, whatever they are called.
_LAYERS_OF_MAPS = (nn.MultiheadAttention, nn.RNNBase, nn.modules.rnn.RNNCellBase)
# Layers whose last map is a child of theirs, but no output of a model.
_BLOCKS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def parameter_roles(model: nn.Module, role_of: RoleOf | None = None) -> dict[str, str]:
    """Tell the role of each trainable parameter.

    Types of modules, tying and position tell it, never names:

    - `"vector"`: fewer than two dimensions, or a single row or column, as biases, the
      scales of norms, class tokens and position embeddings of shape (1, N, d) have, and
      each expert's bias beside stacked experts.
    - `"embedding"`: the weight of an nn.Embedding or nn.EmbeddingBag; `"tied"` where an
      output layer or another linear layer has the same weight.
    - `"head"`: the weight of the output layer. This is what the model's
      `get_output_embeddings()` returns; else its last linear or convolutional layer in
      the order of registration, if this is a child of the model or of an nn.Sequential
      that is one; else the same layer where it has as many rows as the model's or its
      config's `num_labels` or `num_classes`. A model has one head, also where it has no
      other layer. A layer or a block of torch that is passed as the model has none,
      and neither has a model that registers its output layer before others: say it by
      `role_of`.
    - `"hidden"`: the weights of other linear layers and convolutions, of nn.Bilinear
      and of transformers' Conv1D, and the matrices of attention and of recurrent
      layers, with several gates or projections in one as they are.
    - `"stacked"`: three dimensions, of a module that has an integer attribute with
      "expert" in its name and the first dimension as its value.
    - `"other"`: what cannot be told, as matrices that custom modules keep, and the
      matrices below a parametrization such as weight norm, whose gradients are not
      those of the weight.

    Shapes and types are read, values are not.

    Args:
        model: the model, perhaps wrapped.
        role_of: takes the name and the parameter and returns its role, or None where
            the rules above shall tell it.

    Returns:
        The roles by name, in the model's order. Shared parameters appear once, under
        their first name. Names are those of the bare model, as in
        :func:`saiopt.get_scales`.

    Raises:
        RuntimeError: FSDP1 flattened several parameters into one.
        ValueError: the model has no parameter that requires a gradient, or one without
            a shape yet, or FSDP1 keeps slices of its parameters; or `role_of` returns
            no role, or a role that needs more dimensions.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> for name, role in parameter_roles(model).items():
        ...     print(name, role)
        0.weight hidden
        0.bias vector
        2.weight head
        2.bias vector
    """
    trainable = trainable_parameters(model)
    told = _told_by_structure(bare_model(model), set(trainable.values()))
    return {
        name: _asked(role_of, name, param) or told[param]
        for name, param in trainable.items()
    }


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient and still have their shapes.

    Args:
        model: the model, perhaps wrapped.

    Returns:
        The parameters by bare name, shared ones under their first.

    Raises:
        RuntimeError: FSDP1 flattened several parameters into one.
        ValueError: there is none, or one without a shape yet, or FSDP1 keeps slices,
            which all have one dimension.
    """
    trainable = {
        bare_name(name): param
        for name, param in bare_model(model).named_parameters()
        if param.requires_grad
    }
    if not trainable:
        raise ValueError("model must have a parameter that requires a gradient")
    for param in trainable.values():
        options.check_given(param)
        if is_slice(param):
            raise ValueError(
                "model must not be sliced by FullyShardedDataParallel, which leaves "
                "one dimension of every parameter: choose the groups by name"
            )
    return trainable


def _asked(role_of: RoleOf | None, name: str, param: nn.Parameter) -> str | None:
    role = role_of(name, param) if role_of else None
    if role is None:
        return None
    if role not in ROLES:
        raise ValueError(
            f"role_of must return one of {', '.join(ROLES)} or None, "
            f"got {role!r} for {name!r}"
        )
    fewest = _FEWEST_DIMENSIONS.get(role, 0)
    if param.dim() < fewest:
        raise ValueError(
            f"role_of must return {role!r} for parameters of at least {fewest} "
            f"dimensions only, got it for {name!r} of {param.dim()}"
        )
    return role


def _told_by_structure(
    model: nn.Module, trainable: Collection[nn.Parameter]
) -> dict[nn.Parameter, str]:
    found: defaultdict[nn.Parameter, set[str]] = defaultdict(set)
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if param in trainable:
                found[param].add(_role_in(module, param))
    for weight in _output_weights(model):
        # Of an output layer with a single row its shape says more.
        if "vector" not in found[weight]:
            found[weight].add("head")
    return {param: _strongest(roles) for param, roles in found.items()}


def _strongest(roles: set[str]) -> str:
    if "embedding" in roles and roles & {"head", "hidden"}:
        return "tied"
    return next(role for role in ROLES if role in roles)


def _role_in(module: nn.Module, param: nn.Parameter) -> str:
    """Tell the role of one of a module's own parameters from the module alone."""
    is_of_experts = param.dim() > 0 and param.shape[0] in _stack_sizes(module)
    if _is_vector(param.shape[1:] if is_of_experts else param.shape):
        return "vector"
    if is_of_experts and param.dim() == 3:
        return "stacked"
    is_weight = param is module._parameters.get("weight")
    if is_weight and isinstance(module, _EMBEDDINGS):
        return "embedding"
    if isinstance(module, _LAYERS_OF_MAPS) or (is_weight and _is_map(module)):
        return "hidden"
    return "other"


def _is_vector(shape: tuple[int, ...]) -> bool:
    if len(shape) < 2 or shape[0] == 1:
        return True
    return all(size == 1 for size in shape[1:])


def _stack_sizes(module: nn.Module) -> set[int]:
    """Return how many experts the module stacks in its parameters, if any."""
    said = {
        value
        for name, value in vars(module).items()
        if "expert" in name and type(value) is int
    }
    return said & {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3}


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, _MAPS) or any(
        (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D")
        for kind in type(module).__mro__
    )


def _output_weights(model: nn.Module) -> list[nn.Parameter]:
    root = _inside_wrappers(model)
    get_output = getattr(root, "get_output_embeddings", None)
    output = get_output() if get_output else None
    if isinstance(output, nn.Module):
        return list(_weights(output))
    if isinstance(root, _BLOCKS):
        return []
    return _weights_at_the_end(root) or _weights_of_labels(root)


def _inside_wrappers(model: nn.Module) -> nn.Module:
    """Go down while one child has all parameters and is no list and no layer."""
    while not any(True for _ in model.parameters(recurse=False)):
        children = [c for c in model.children() if any(True for _ in c.parameters())]
        if len(children) != 1 or not any(True for _ in children[0].children()):
            break
        if isinstance(children[0], (nn.ModuleList, nn.ModuleDict)):
            break
        model = children[0]
    return model


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    weight = _shown_weight(module)
    if weight is not None:
        yield weight
        return
    for child in module.children():
        yield from _weights(child)


def _shown_weight(module: nn.Module) -> nn.Parameter | None:
    """Return the weight that a module shows as its own.

    Layers of peft show that of the layer that they adapt, wrappers that of the layer
    inside. To read one below a parametrization would compute it.
    """
    if parametrize.is_parametrized(module):
        return None
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) else None


def _weights_at_the_end(root: nn.Module) -> list[nn.Parameter]:
    for child in reversed(list(root.children())):
        if any(map(_has_maps, child.modules())):
            if isinstance(child, nn.Sequential):
                return _weights_at_the_end(child)
            weight = _shown_weight(child)
            return [] if weight is None else [weight]
    return []


def _has_maps(module: nn.Module) -> bool:
    return isinstance(module, _LAYERS_OF_MAPS) or _is_map(module)


def _weights_of_labels(root: nn.Module) -> list[nn.Parameter]:
    said = [
        getattr(place, name, None)
        for place in (root, getattr(root, "config", None))
        for name in ("num_labels", "num_classes")
    ]
    last = [m._parameters.get("weight") for m in root.modules() if _is_map(m)][-1:]
    return [w for w in last if w is not None and w.shape[0] in said]
