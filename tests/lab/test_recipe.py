import pytest

from saiopt.lab.comparison.compare import plan
from saiopt.lab.recipe import Recipe, override, usual_optimizers
from saiopt.lab.recipes import RECIPES, get_recipe
from saiopt.lab.training.ranks import Ranks


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_registered_under_its_own_name(name: str) -> None:
    assert get_recipe(name).name == name


def test_an_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(ValueError, match=r"gpt-stdlib, vit-digits, .*, got gpt$"):
        get_recipe("gpt")


def test_text_becomes_a_value_of_the_fields_kind(tiny: Recipe) -> None:
    changed = override(
        tiny,
        {"steps": "7", "clip_norm": "0", "schedule": "linear", "task.num_heads": "4"},
    )
    assert (changed.steps, changed.clip_norm, changed.schedule) == (7, 0.0, "linear")
    assert changed.task.num_heads == 4
    assert changed.batch_size == tiny.batch_size


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": "0"}, "steps must be at least 1, got 0"),
        ({"steps": "1.5"}, "steps must be a whole number, got 1.5"),
        ({"eval_every": "-1"}, "eval_every must be at least 1, got -1"),
        ({"clip_norm": "nan"}, "clip_norm must be finite and at least 0, got nan"),
        ({"clip_norm": "inf"}, "clip_norm must be finite and at least 0, got inf"),
        ({"decay_per_step": "x"}, "decay_per_step must be a number, got x"),
        ({"warmup_fraction": "1"}, r"warmup_fraction must be in \[0, 1\), got 1.0"),
        (
            {"schedule": "sine"},
            r"schedule must be one of constant, .*, got sine; .* cosine\?",
        ),
        ({"micro_batches": "3"}, "batch_size must be a multiple of .* got 16 and 3"),
        (
            {"precision": "float16"},
            r"precision must be one of float32, bfloat16, got float16; .* bfloat16\?",
        ),
        ({"micro_batches": "0"}, "micro_batches must be at least 1, got 0"),
        ({"gradient_release": "1"}, "gradient_release must be true or false, got 1"),
        (
            {"gradient_release": "true"},
            "clip_norm must be 0 with gradient_release, .* got 1.0",
        ),
        (
            {"gradient_release": "true", "clip_norm": "0", "micro_batches": "2"},
            "micro_batches must be 1 with gradient_release, .* got 2",
        ),
        ({"name": "x"}, "field in set must be one of steps, .*, got name.*"),
        (
            {"task.depth": "2"},
            r"field in set must be one of task\.hidden_size.*got task\.depth.*",
        ),
        (
            {"task.num_heads": "3"},
            r"task\.hidden_size must be a multiple of task\.num_heads, got 16 and 3",
        ),
        ({"task.num_layers": "0"}, r"sizes must be at least 1, got .*num_layers=0.*"),
        ({"task.patch_size": "3"}, r"task\.patch_size must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_a_bad_override_is_refused_in_one_sentence(
    tiny: Recipe, settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        override(tiny, settings)


def test_the_usual_optimizers_are_those_with_a_learning_rate() -> None:
    recipe = get_recipe("lora-pydoc")
    assert "scaled-gd" in recipe.lrs
    assert set(usual_optimizers(recipe)) == {
        "sgdsai",
        "sgdsai-sqrt-numel",
        "adamw",
        "sgd",
        "sgdm-decoupled",
    }
    assert usual_optimizers(get_recipe("llama2-7b-24gb")) == ("sgdsai-int8",)


@pytest.mark.parametrize(
    ("fraction", "steps", "warmup"),
    [("0.29", 100, 29), ("0.57", 100, 57), ("0.07", 100, 7), ("0.05", 39, 1)],
)
def test_a_decimal_share_of_the_steps_is_exact(
    fraction: str, steps: int, warmup: int
) -> None:
    settings = {"warmup_fraction": fraction, "steps": str(steps)}
    assert override(get_recipe("vit-digits"), settings).warmup_steps == warmup


def test_the_recipes_keep_their_steps_of_warm_up() -> None:
    assert {name: get_recipe(name).warmup_steps for name in RECIPES} == {
        "gpt-stdlib": 30,
        "vit-digits": 90,
        "resnet-digits": 15,
        "lora-pydoc": 6,
        "ddpm-digits": 20,
        "lora-ddpm-digits": 10,
        "gpt-packages-3m": 300,
        "gpt-packages-10m": 150,
        "gpt2-openwebtext": 2000,
        "vit-s16-imagenet": 10_009,
        "resnet18-cifar10": 0,
        "gpt2m-lora-e2e": 500,
        "sd-lora": 0,
        "llama2-7b-24gb": 300,
    }


# Of its optimizer nobody has published a learning rate.
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"llama2-7b-24gb"}))
def test_a_recipe_starts_as_shipped(name: str) -> None:
    recipe = get_recipe(name)
    assert plan(recipe, [recipe.optimizer], [0], {})[0].lr > 0


@pytest.mark.parametrize("name", ["gpt2-openwebtext", "vit-s16-imagenet"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_published_size_is_shared_by_processes_in_parts_of_the_same_size(
    name: str, count: int
) -> None:
    recipe = get_recipe(name)
    assert recipe.batch_size % count == 0
    parts = Ranks(0, count, "ddp").parts(recipe.batch_size, recipe.micro_batches)
    largest = recipe.batch_size // recipe.micro_batches
    assert recipe.batch_size // count / parts <= largest


@pytest.mark.parametrize(
    ("count", "batch", "micro", "parts"),
    [(1, 12, 4, 4), (2, 12, 1, 1), (2, 12, 4, 2), (3, 12, 4, 2), (4, 20, 3, 1)],
)
def test_the_parts_of_a_share_are_equal_and_no_larger_than_those_of_the_batch(
    count: int, batch: int, micro: int, parts: int
) -> None:
    assert Ranks(0, count, "ddp").parts(batch, micro) == parts
