from collections import Counter

import layouts
import pytest
import torch
from models import TinyTransformer
from role_models import CASES, Recurrent, TimmViT, gpt2, mixtral, mlp, with_lora
from torch import nn
from torch.distributed.fsdp import ShardingStrategy
from torch.nn.utils import parametrizations

from saiopt import SGDSaI, decay_groups, orthogonal_groups, parameter_roles
from saiopt.optimizer.roles import ROLES


class Experts(nn.Module):
    def __init__(self, *shapes, num_experts=3):
        super().__init__()
        self.num_experts = num_experts
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.zeros(shape)))


class Last(nn.Module):
    """A backbone and what comes last."""

    def __init__(self, last, **said):
        super().__init__()
        vars(self).update(said)
        self.first = nn.Linear(4, 4, bias=False)
        self.last = last


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 3, bias=False)


def linear():
    return nn.Linear(4, 3, bias=False)


def roles_of(model, **options):
    return list(parameter_roles(model, **options).values())


@pytest.mark.parametrize("name", CASES)
def test_roles_of_known_models(name):
    build, expected = CASES[name]
    assert Counter(roles_of(build())) == expected


@pytest.mark.parametrize("name", ["GPT-2, tied", "Mixtral", "UNet2DModel", "LSTM"])
def test_the_meta_device_has_roles_too(name):
    build, expected = CASES[name]
    with torch.device("meta"):
        model = build()
    if name == "GPT-2, tied":
        model.tie_weights()
    assert Counter(roles_of(model)) == expected


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 5), (5, 1), (1, 1, 5), (1, 4, 5), (5, 1, 1)]
)
def test_a_single_row_or_column_is_a_vector(shape):
    model = nn.ParameterDict({"p": torch.zeros(shape)})
    assert roles_of(model) == ["vector"]


def test_a_layer_with_one_output_is_a_vector_wherever_it_is():
    assert (
        roles_of(nn.Sequential(linear(), nn.Linear(3, 1)))
        == ["hidden"] + ["vector"] * 2
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3, bias=False),
        nn.Conv1d(4, 4, 3, groups=4, bias=False),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.ConvTranspose3d(4, 3, 2, bias=False),
        nn.Bilinear(4, 3, 2, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_alone_is_hidden(layer):
    assert roles_of(layer) == ["hidden"]


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTMCell])
def test_recurrent_matrices_are_hidden(cell):
    assert Counter(roles_of(cell(3, 4))) == {"hidden": 2, "vector": 2}


def test_subclasses_have_the_roles_of_their_classes():
    class Bag(nn.EmbeddingBag):
        pass

    class Dense(nn.Linear):
        pass

    model = nn.Sequential(Bag(5, 4), Dense(4, 4, bias=False), linear())
    assert roles_of(model) == ["embedding", "hidden", "head"]


@pytest.mark.parametrize(
    "block",
    [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer],
)
def test_a_block_alone_has_no_head(block):
    assert "head" not in roles_of(block(8, 2, 16))


@pytest.mark.parametrize(
    ("last", "role"),
    [
        (linear(), "head"),
        (nn.Conv2d(4, 3, 1, bias=False), "head"),
        (nn.Sequential(nn.Flatten(), linear()), "head"),
        (nn.Sequential(nn.Sequential(linear(), nn.Dropout())), "head"),
        (Block(), "hidden"),
        (nn.Sequential(Block()), "hidden"),
        (nn.ModuleList([linear()]), "hidden"),
    ],
)
def test_the_last_layer_is_the_head_unless_it_is_inside_a_block(last, role):
    assert roles_of(Last(last)) == ["hidden", role]


def test_a_recurrent_layer_at_the_end_leaves_no_head():
    assert set(roles_of(Last(nn.LSTM(4, 4)))) == {"hidden", "vector"}


@pytest.mark.parametrize(("classes", "role"), [(3, "head"), (7, "hidden")])
def test_a_block_at_the_end_with_a_row_for_each_class_has_the_head(classes, role):
    assert roles_of(Last(Block(), num_classes=classes)) == ["hidden", role]


def test_the_only_layer_of_a_model_is_its_head():
    assert roles_of(nn.Sequential(nn.Flatten(), linear())) == ["head"]


def test_what_a_model_calls_its_output_embeddings_is_the_head():
    class First(Last):
        def get_output_embeddings(self):
            return self.first

    assert roles_of(First(linear())) == ["head", "hidden"]


@pytest.mark.parametrize("tie", [nn.Linear, nn.Embedding])
def test_the_strongest_role_of_a_shared_parameter_counts(tie):
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False), linear())
    model[1].weight = tie(4, 4).weight
    model[0].weight = model[1].weight
    assert parameter_roles(model) == {"0.weight": "tied", "2.weight": "head"}


def test_frozen_parameters_have_no_role():
    model = mlp()
    model[4].requires_grad_(False)
    assert Counter(roles_of(model)) == {"hidden": 2, "vector": 2}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(3, 4, 8), (3, 8)], ["stacked", "vector"]),
        ([(3, 4, 8), (7, 8), (3,)], ["stacked", "other", "vector"]),
        ([(3, 4, 8), (3, 1, 8)], ["stacked", "vector"]),
        ([(3, 8)], ["other"]),
        ([(5, 4, 8)], ["other"]),
        ([(3, 2, 4, 8)], ["other"]),
    ],
)
def test_experts_are_told_by_their_number(shapes, expected):
    assert roles_of(Experts(*shapes)) == expected


def test_one_expert_is_a_stack_of_one():
    assert roles_of(Experts((1, 4, 8), num_experts=1)) == ["stacked"]


@pytest.mark.parametrize(
    "parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_matrices_below_a_parametrization_are_other(parametrization):
    layers = [parametrization(nn.Linear(4, 4, bias=False)) for _ in range(2)]
    roles = Counter(roles_of(nn.Sequential(*layers)))
    assert roles.pop("other") == 2
    assert set(roles) <= {"vector"}


def test_the_weight_below_a_parametrization_is_not_computed(monkeypatch):
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    called = []
    layer.parametrizations["weight"].register_forward_hook(
        lambda *_: called.append(True)
    )
    parameter_roles(nn.Sequential(nn.Linear(4, 4), layer))
    assert not called


def test_wrappers_leave_names_and_roles():
    bare = parameter_roles(TimmViT())
    assert parameter_roles(torch.compile(TimmViT(), backend="eager")) == bare
    assert parameter_roles(nn.DataParallel(TimmViT())) == bare
    model = TimmViT()
    model.head = torch.compile(model.head, backend="eager")
    assert parameter_roles(model) == bare


def roles_in_layouts():
    bare = parameter_roles(layouts.make_net())
    kept = ShardingStrategy.NO_SHARD
    for model in (
        layouts.ddp(layouts.make_net()),
        layouts.fsdp2(layouts.make_net()),
        layouts.tensor_parallel(layouts.make_net()),
        layouts.fsdp1(layouts.make_net(), sharding_strategy=kept),
    ):
        assert parameter_roles(model) == bare
    with pytest.raises(ValueError, match="choose the groups by name"):
        parameter_roles(layouts.fsdp1(layouts.make_net()))
    return bare


def test_roles_are_those_of_the_bare_model_on_several_ranks(workers):
    for bare in workers.run(2, roles_in_layouts):
        assert {"embedding", "hidden", "head", "vector"} <= set(bare.values())


def test_a_wrapper_of_a_model_and_its_loss_has_the_models_head():
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = TinyTransformer()
            self.loss = nn.CrossEntropyLoss()

    assert parameter_roles(Task())["model.head.weight"] == "head"


def test_adapters_of_the_output_layer_are_hidden():
    model = with_lora(gpt2(tie_word_embeddings=False), target_modules=["lm_head"])
    assert roles_of(model) == ["hidden"] * 2
    model.get_base_model().lm_head.weight.requires_grad_(True)
    assert Counter(roles_of(model)) == {"head": 1, "hidden": 2}


def test_adapters_of_embeddings_are_other():
    model = with_lora(gpt2(tie_word_embeddings=False), target_modules=["wte"])
    assert roles_of(model) == ["other"] * 2


@pytest.mark.parametrize("roles_in", [parameter_roles, lambda m: decay_groups(m, 0.1)])
def test_what_cannot_be_grouped_is_refused(roles_in):
    with pytest.raises(ValueError, match="model must have a parameter"):
        roles_in(nn.Linear(3, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="got one of a lazy module"):
        roles_in(nn.LazyLinear(3))


def test_role_of_goes_before_the_rules():
    def role_of(name, param):
        assert isinstance(param, nn.Parameter)
        return {"0.weight": "other", "2.weight": "head"}.get(name)

    assert roles_of(mlp(), role_of=role_of) == [
        "other",
        "vector",
        "head",
        "vector",
        "head",
        "vector",
    ]


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("body", "role_of must return one of tied, .*, got 'body' for 'weight'"),
        (3, "role_of must return one of tied, .*, got 3 for 'weight'"),
        ("stacked", "at least 3 dimensions only, got it for 'weight' of 2"),
    ],
)
def test_role_of_is_checked(role, message):
    with pytest.raises(ValueError, match=message):
        parameter_roles(nn.Linear(3, 2), lambda name, param: role)


def test_a_vector_cannot_be_hidden():
    with pytest.raises(ValueError, match=r"'hidden' for .* got it for 'bias' of 1"):
        parameter_roles(nn.Linear(3, 2), lambda name, param: "hidden")


def test_groups_have_the_options_of_their_roles():
    model = mixtral()
    groups = orthogonal_groups(model, 0.1)
    assert [g["role"] for g in groups] == [r for r in ROLES if r != "tied"]
    for group in groups:
        role = group["role"]
        options = {k: v for k, v in group.items() if k not in {"params", "role"}}
        assert options == {"weight_decay": 0.1, **ROLES[role]}
        assert options["weight_decay"] == (0 if role == "vector" else 0.1)
        orthogonal = role in {"hidden", "stacked"}
        assert options["scaling"] == ("orthogonal" if orthogonal else "factored")
        assert options.get("stacked", False) == (role == "stacked")
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_groups_hold_the_models_own_parameters_by_their_names():
    model = torch.compile(Recurrent(), backend="eager")
    own = dict(model._orig_mod.named_parameters())
    for group in orthogonal_groups(model, 0.1):
        for name, param in group["params"]:
            assert param is own[name]


def test_options_of_a_role_take_the_place_of_the_defaults():
    given = {
        "vector": {"weight_decay": 0.2, "momentum": 0.8},
        "hidden": {"scaling": "factored", "lr_multiplier": 3.0},
        "tied": {"lr_multiplier": 5.0},
    }
    found = {g["role"]: g for g in orthogonal_groups(mlp(), 0.1, roles=given)}
    assert list(found) == ["head", "hidden", "vector"]
    assert (found["vector"]["weight_decay"], found["vector"]["momentum"]) == (0.2, 0.8)
    assert found["hidden"]["scaling"] == "factored"
    assert found["hidden"]["lr_multiplier"] == 3.0
    assert "momentum" not in found["hidden"]
    assert ROLES["hidden"]["scaling"] == "orthogonal"


@pytest.mark.parametrize(
    ("roles", "error", "message"),
    [
        ({"bodies": {}}, ValueError, "roles must name some of tied, .*got 'bodies'"),
        ({"head": 2.0}, TypeError, r"roles\['head'\] must be a mapping .*got 2.0"),
        ({"head": {"params": []}}, ValueError, r"leave params and role alone"),
    ],
)
def test_options_of_roles_are_checked(roles, error, message):
    with pytest.raises(error, match=message):
        orthogonal_groups(mlp(), 0.1, roles=roles)


def test_an_optimizer_takes_the_groups_and_keeps_names_and_roles():
    every = {role: {"scaling": "gsnr"} for role in ROLES}
    optimizer = SGDSaI(orthogonal_groups(gpt2(), 0.1, roles=every))
    tied = optimizer.param_groups[0]
    assert tied["role"] == "tied"
    assert tied["param_names"] == ["transformer.wte.weight"]
    assert tied["lr_multiplier"] == ROLES["tied"]["lr_multiplier"]


def test_an_optimizer_shows_how_much_each_group_holds():
    optimizer = SGDSaI(decay_groups(mlp(), 0.1))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 3))]})
    shown = repr(optimizer)
    assert shown.startswith("SGDSaI (\nParameter Group 0\n    params: 3 tensors, 120")
    assert "Parameter Group 1\n    params: 3 tensors, 19 entries\n" in shown
    assert "Parameter Group 2\n    params: 1 tensors, 6 entries\n" in shown
    assert "    momentum: 0.9\n" in shown


def test_a_long_list_of_names_does_not_hide_the_options():
    optimizer = SGDSaI(mlp().named_parameters())
    assert "4.weight" not in repr(optimizer)
