import dataclasses

import pytest

from saiopt.lab.recipe import Recipe, override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.sweep.plan import Sweep
from saiopt.lab.training.run import Run

NUMERICS = {"threads": 1, "data": "abc"}


def test_the_folder_name_says_what_it_is(tiny: Recipe) -> None:
    name = Run(tiny, "adamw", 0.1, 3).folder_name(NUMERICS)
    assert name.startswith("vit-digits-adamw-seed3-")
    assert len(name.rpartition("-")[2]) == 8


def test_what_changes_no_number_changes_no_name(tiny: Recipe) -> None:
    other = dataclasses.replace(
        tiny, description="other", checkpoint_every=1, lrs={"adamw": 9.0}
    )
    names = {Run(r, "adamw", 0.1, 0).folder_name(NUMERICS) for r in (tiny, other)}
    assert len(names) == 1


def test_whatever_changes_a_number_changes_the_name(tiny: Recipe) -> None:
    run = Run(tiny, "adamw", 0.1, 0)
    runs = [
        run,
        dataclasses.replace(run, lr=0.2),
        dataclasses.replace(run, gsnr_every=5),
        dataclasses.replace(run, settings={"betas": (0.9, 0.99)}),
        *(
            dataclasses.replace(run, recipe=override(tiny, {field: value}))
            for field, value in {
                "steps": "13",
                "eval_every": "6",
                "clip_norm": "2",
                "decay_per_step": "0",
                "precision": "bfloat16",
                "compiled": "true",
                "task.hidden_size": "8",
            }.items()
        ),
    ]
    names = [run.folder_name(NUMERICS) for run in runs]
    names += [run.folder_name({**NUMERICS, "threads": 2})]
    names += [run.folder_name({**NUMERICS, "data": "xyz"})]
    assert len(set(names)) == len(names)


def test_settings_that_an_optimizer_does_not_have_are_refused(tiny: Recipe) -> None:
    sentence = "settings must be among betas, eps for adamw, got momentum"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Run(tiny, "adamw", 0.1, 0, settings={"momentum": 0.9})


def test_runs_from_before_a_field_was_added_keep_their_names() -> None:
    run = Run(get_recipe("gpt-stdlib"), "sgdsai", 0.01, 0)
    assert run.folder_name(NUMERICS) == "gpt-stdlib-sgdsai-seed0-f13d2141"
    released = override(run.recipe, {"clip_norm": "0", "gradient_release": "true"})
    plain = override(run.recipe, {"clip_norm": "0"})
    assert (
        len(
            {Run(r, "sgdsai", 0.01, 0).folder_name(NUMERICS) for r in (released, plain)}
        )
        == 2
    )


@pytest.mark.parametrize(
    "optimizer", ["adamw", "sgd", "muon", "sgdsai-gsnr-max", "sgdsai-shuffled"]
)
def test_gradient_release_refuses_optimizers_that_cannot(
    tiny: Recipe, optimizer: str
) -> None:
    recipe = override(tiny, {"clip_norm": "0", "gradient_release": "true"})
    sentence = f"optimizer must be one of sgdsai, .* gradient_release, got {optimizer}"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Run(recipe, optimizer, 0.1, 0)


def test_gradient_release_refuses_to_measure_gradients(tiny: Recipe) -> None:
    recipe = override(tiny, {"clip_norm": "0", "gradient_release": "true"})
    with pytest.raises(ValueError, match=r"^gsnr_every must be 0 with .* got 5$"):
        Run(recipe, "sgdsai", 0.1, 0, gsnr_every=5)


def test_the_decay_per_step_is_the_recipes_at_every_learning_rate(tiny: Recipe) -> None:
    for lr in (1e-4, 1.0, 30.0):
        run = Run(tiny, "sgdsai", lr, 0)
        assert run.lr * run.weight_decay == pytest.approx(tiny.decay_per_step)


def test_adam_has_no_decay_where_none_is_given(tiny: Recipe) -> None:
    # No λ of an L2 penalty that Adam normalises decays a weight by a given share.
    assert Run(tiny, "adam", 0.01, 0).weight_decay == 0
    assert Run(tiny, "adam", 0.01, 0, fixed_weight_decay=0.5).weight_decay == 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"gsnr_every": -1}, "gsnr_every must be at least 0, got -1"),
        ({"optimizer": "adamax"}, "optimizer must be one of .*, got adamax.*"),
    ],
)
def test_a_bad_argument_is_refused(
    tiny: Recipe, change: dict[str, float | str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        dataclasses.replace(Run(tiny, "sgdsai", 0.1, 0), **change)


@pytest.mark.parametrize(
    ("recipe", "packages"),
    [
        ("ddpm-digits", {"diffusers", "scikit-learn"}),
        ("lora-ddpm-digits", {"diffusers", "peft", "scikit-learn"}),
        ("lora-pydoc", {"peft"}),
        ("gpt2m-lora-e2e", {"nltk", "peft", "rouge-score"}),
        ("sd-lora", {"diffusers", "peft"}),
    ],
)
def test_the_packages_that_build_a_model_are_part_of_its_runs(
    recipe: str, packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(get_recipe(recipe), "sgdsai", 0.01, 0)
    sweep = Sweep(run.recipe, "sgdsai", (0.01,), (), (0,))
    assert run.describe()["packages"].keys() == packages
    before = run.folder_name(NUMERICS), sweep.study_name({})
    monkeypatch.setattr("saiopt.lab.training.run.version", lambda _: "9.9.9")
    after = run.folder_name(NUMERICS), sweep.study_name({})
    assert before[0] != after[0]
    assert before[1] != after[1]
