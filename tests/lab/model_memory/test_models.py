import json

import pytest
import torch

from saiopt.lab.model_memory.models import KNOWN_MODELS, build_model

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama3-8b": 8_030_261_248,
    "vit-s16": 22_050_664,
    "vit-h14": 632_045_800,
    "resnet18": 11_689_512,
}


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_model_has_the_published_number_of_parameters(name):
    model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert all(p.is_meta for p in model.parameters())
    assert KNOWN_MODELS[name].num_params == PUBLISHED[name]


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_hugging_face_config_builds_its_architecture(tmp_path, as_folder):
    path = tmp_path / "config.json"
    values = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}
    path.write_text(json.dumps({**values, "architectures": ["GPT2LMHeadModel"]}))
    model = build_model(str(tmp_path if as_folder else path))
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.config.n_embd == 8


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("names", [["GPT2LMHeadModel"], []])
def test_a_hugging_face_config_sets_the_dtype_of_the_weights(tmp_path, key, names):
    values = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}
    values |= {"architectures": names, key: "bfloat16"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    dtypes = {p.dtype for p in build_model(str(path)).parameters()}
    assert dtypes == {torch.bfloat16}


def test_a_callable_is_imported_and_called_on_the_meta_device(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Linear(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = build_model("my_model:build")
    assert model.weight.is_meta
    assert model.weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt5", "model must be one of gpt2, .* got gpt5"),
        ("no_such_package:f", "imported and called without arguments"),
        ("torch:no_such_name", "imported and called without arguments"),
        ("torch.nn:Linear", "called without arguments, got torch.nn:Linear"),
        ("torch:get_num_threads", "returns an nn.Module, got .* returns int"),
    ],
)
def test_a_name_that_leads_to_no_model_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_model(name)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"model_type": "nothing"}',
        "{}",
        "[]",
        '{"model_type": "gpt2", "dtype": "bf17"}',
        '{"model_type": "gpt2", "architectures": ["ViTForImageClassification"]}',
        '{"model_type": "gpt2", "architectures": ["GPT2Config"]}',
        '{"model_type": "gpt2", "architectures": [3]}',
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"model must be a Hugging Face config\.json"):
        build_model(str(path))
