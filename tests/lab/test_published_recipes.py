import builtins
import errno
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_files import load, write_tokenizer

from saiopt.cli import main
from saiopt.lab.data.augmentation import crop_and_flip, random_resized_crop
from saiopt.lab.data.published_data import read_table
from saiopt.lab.tasks.image_models import small_stem_resnet, vision_transformer
from saiopt.lab.tasks.text_metrics import cider, text_metrics

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SAIOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    yield
    datasets.disable_progress_bars()


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def image(side: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def test_published_image_models_have_the_published_parameters() -> None:
    with torch.device("meta"):
        resnet = small_stem_resnet(10, 3, [64, 128, 256, 512], 2)
        vit = vision_transformer(1000, 224, 16, 384, 12, 6)
    assert count(resnet) == 11_173_962
    assert count(vit) == 22_050_664


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow"])
def test_openwebtext_is_read_from_a_local_folder(tmp_path: Path, kind: str) -> None:
    table = datasets.Dataset.from_dict({"text": ["Aromi is an Indian place " * 40] * 4})
    data = tmp_path / "data"
    data.mkdir()
    if kind == "parquet":
        table.to_parquet(data / "train-00000.parquet")
    elif kind == "jsonl":
        table.to_json(data / "train.jsonl")
    else:
        table.save_to_disk(data)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    task = load("gpt2-openwebtext", data=data, tokenizer=tokenizer, context=16)
    tokens = task.batch(0, 3, 5)["tokens"]
    assert tokens.shape == (5, 17)
    assert torch.equal(tokens, task.batch(0, 3, 5)["tokens"])
    files = list((tmp_path / "cache").glob("tokens-*.bin"))
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    again = load("gpt2-openwebtext", data=data, tokenizer=tokenizer, context=16)
    assert again.fingerprint == task.fingerprint
    assert [file.stat().st_mtime_ns for file in files] == before


def test_other_code_tokenizes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = datasets.Dataset.from_dict({"text": ["Aromi is an Indian"] * 4000})
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train.parquet")
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    for _ in range(2):
        load("gpt2-openwebtext", data=tmp_path / "data", tokenizer=tokenizer, context=4)
        monkeypatch.setattr(
            "saiopt.lab.data.published_text.code_hash", lambda *_: "edited"
        )
    assert len(list((tmp_path / "cache").glob("tokens-*.bin"))) == 4


def test_gpt2_small_has_the_published_parameters(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": ["Aromi is an Indian " * 900] * 4})
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train.parquet")
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    task = load("gpt2-openwebtext", data=tmp_path / "data", tokenizer=tokenizer)
    with torch.device("meta"):
        assert count(task.build_model(0)) == 124_439_808


def test_cifar10_is_read_from_parquet_files(tmp_path: Path) -> None:
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.Value("int64")}
    )
    for split in ("train", "test"):
        rows = {"img": [image(32, i) for i in range(6)], "label": list(range(6))}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    task = load("resnet18-cifar10", data=tmp_path)
    batch = task.batch(0, 0, 4)
    assert batch["images"].shape == (4, 3, 32, 32)
    assert torch.equal(batch["images"], task.batch(0, 0, 4)["images"])
    model = small_stem_resnet(10, 3, [4, 8], 1)
    assert task.loss(model, batch).isfinite()
    assert 0 <= task.evaluate(model.eval())["accuracy"] <= 1


def test_imagenet_is_read_from_folders_of_images(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                image(40 + i, i).save(folder / f"{i}.png")
    task = load("vit-s16-imagenet", data=tmp_path, classes=2)
    batch = task.batch(0, 0, 4)
    assert batch["images"].shape == (4, 3, 224, 224)
    assert sorted(batch["labels"].tolist()) == [0, 0, 1, 1]
    model = vision_transformer(2, 224, 112, 8, 1, 1)
    assert task.evaluate(model.eval()).keys() == {"accuracy", "loss"}


def test_e2e_trains_on_sentences_only_and_scores_what_it_says(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    rows = {
        "meaning_representation": ["name[Aromi]", "name[Aromi]", "name[Zizzi]"],
        "human_reference": ["Aromi is an Indian place", "Aromi", "Zizzi is a pub"],
    }
    for split in ("train", "test"):
        text = "\n".join(
            json.dumps(dict(zip(rows, row, strict=True)))
            for row in zip(*rows.values(), strict=True)
        )
        (tmp_path / f"{split}.jsonl").write_text(text)
    folder = write_tokenizer(tmp_path / "model")
    config = GPT2Config(
        vocab_size=300, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    task = load("gpt2m-lora-e2e", data=tmp_path, model=folder)
    batch = task.batch(0, 0, 3)
    assert (batch["targets"] == -100).any(dim=1).all()
    kept = batch["targets"] != -100
    assert torch.equal(batch["targets"][kept], batch["tokens"][kept])
    model = task.build_model(0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("c_attn.lora_" in name for name in trained)
    metrics = task.evaluate(model.eval())
    assert metrics.keys() >= {"loss", "bleu", "nist", "rouge_l", "cider"}


def test_gpt2_medium_has_the_published_parameters() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        medium = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    assert count(medium) == 354_823_168


def test_stable_diffusion_has_the_published_parameters() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        assert count(UNet2DConditionModel(cross_attention_dim=768)) == 859_520_964


def test_sd_lora_reads_a_checkpoint_and_a_folder_of_images(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "sd")
    (tmp_path / "images").mkdir()
    for i in range(2):
        image(40, i).save(tmp_path / "images" / f"{i}.jpg")
    task = load(
        "sd-lora", checkpoint=tmp_path / "sd", images=tmp_path / "images", side=16
    )
    with torch.device("meta"):
        task.build_model(0)
    model = task.build_model(0)
    loss = task.loss(model, task.batch(0, 0, 2))
    loss.backward()
    assert any(p.grad is not None for p in model.parameters())
    assert task.evaluate(model.eval())["loss"] > 0


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("epsilon", lambda latents, noise, kept: noise),
        ("sample", lambda latents, noise, kept: latents),
        (
            "v_prediction",
            lambda latents, noise, kept: (
                kept.sqrt() * noise - (1 - kept).sqrt() * latents
            ),
        ),
    ],
)
def test_sd_lora_learns_what_its_checkpoint_predicts(kind: str, target: Any) -> None:
    from diffusers import DDPMScheduler

    from saiopt.lab.tasks.latent_diffusion import LatentDiffusion

    noising = DDPMScheduler(prediction_type=kind)
    latents = torch.randn(3, 4, 2, 2)
    task = LatentDiffusion(
        torch.nn.Identity, noising, latents, torch.zeros(1, 8), 1, ""
    )
    batch = task.batch(0, 0, 5)

    def silent(noisy: torch.Tensor, *_: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    kept = noising.alphas_cumprod[batch["levels"]].view(-1, 1, 1, 1)
    expected = target(batch["latents"], batch["noise"], kept).square().mean()
    torch.testing.assert_close(task.loss(silent, batch), expected)


def test_sd_lora_refuses_a_checkpoint_of_which_it_knows_no_target(
    tmp_path: Path,
) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type="flow_prediction")
    scheduler.save_pretrained(tmp_path / "sd" / "scheduler")
    image(16, 0).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"predict one of epsilon, .* got flow_pred"):
        load("sd-lora", checkpoint=tmp_path / "sd", images=tmp_path, side=16)


def write_checkpoint(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(
        folder / "vae"
    )
    DDPMScheduler().save_pretrained(folder / "scheduler")
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    letters = [chr(code) for code in range(97, 123)]
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(f"{c}</w>" for c in letters),
    ]
    (tokenizer / "vocab.json").write_text(
        json.dumps({w: i for i, w in enumerate(words)})
    )
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 8, "tokenizer_class": "CLIPTokenizer"})
    )


@pytest.mark.parametrize(
    ("recipe", "field"), [("vit-s16-imagenet", "data"), ("sd-lora", "checkpoint")]
)
def test_what_is_not_there_is_answered_with_how_to_get_it(
    recipe: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(40, 0).save(tmp_path / "0.png")
    arguments = ["train", recipe, "--runs-dir", str(tmp_path / "runs")]
    if recipe == "sd-lora":
        arguments += ["--set", f"task.images={tmp_path}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"task.{field} must be a folder or in reach on the hub" in error
    assert "hf download" in error
    assert error.count("\n") == 1


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nltk.translate.bleu_score", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'saiopt\[published\]'"):
        text_metrics(["a"], [["a"]])


@pytest.mark.parametrize(
    "module",
    [f"nltk.translate.{name}_score" for name in ("bleu", "nist", "meteor")]
    + ["rouge_score.rouge_scorer"],
)
def test_a_package_that_measures_is_missed_before_training(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FileNotFoundError, match=f"needs the package {module}"):
        load("gpt2m-lora-e2e", data="nowhere")


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"words": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(FileNotFoundError, match="must have the columns text, got"):
        read_table(str(tmp_path), "train", ("text",))


@pytest.mark.parametrize(("part", "held"), [("train", "train"), ("test[:2]", "test")])
def test_a_folder_of_one_split_is_not_taken_for_another(
    tmp_path: Path, part: str, held: str
) -> None:
    table = datasets.Dataset.from_dict({"text": ["a", "b"]}, split=part)
    table.save_to_disk(tmp_path)
    assert read_table(str(tmp_path), held, ("text",))["text"][:] == ["a", "b"]
    other = {"train": "test", "test": "train"}[held]
    sentence = f"task.data must have the split {other}, got {tmp_path} with {held} only"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        read_table(str(tmp_path), other, ("text",))


def test_a_folder_of_several_splits_names_them_where_one_is_missing(
    tmp_path: Path,
) -> None:
    table = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path)
    assert read_table(str(tmp_path), "test", ("text",))["text"][:] == ["a"]
    with pytest.raises(FileNotFoundError, match=r"split dev, got .* with train, test"):
        read_table(str(tmp_path), "dev", ("text",))


def test_images_whose_classes_differ_between_splits_are_refused(tmp_path: Path) -> None:
    for split, names in (("train", ("cat", "dog", "eel")), ("val", ("dog", "eel"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            image(8, 0).save(tmp_path / split / name / "0.png")
    assert read_table(str(tmp_path), "train", ("image", "label"))["label"][:] == [
        0,
        1,
        2,
    ]
    with pytest.raises(FileNotFoundError, match=r"in val as in train, .* cat in"):
        read_table(str(tmp_path), "val", ("image", "label"))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train gpt2-openwebtext --optimizer adamw", "task.data .*hf download .*"),
        ("train vit-s16-imagenet", "task.data .*hf download .*"),
        ("train resnet18-cifar10", "task.data .*hf download .*"),
        ("train gpt2m-lora-e2e", "task.data .*hf download .*"),
        ("train sd-lora", "task.images must be a folder with PNG, .*"),
        ("train sd-lora --set task.images=.", "task.images must be a folder .*"),
        (
            "train resnet18-cifar10 --set task.data=.",
            "task.data .* split train, got .*",
        ),
        ("noise phase --data mnist", "source must be a folder .* got none .*"),
        ("noise phase --data cifar10 --source .", "source must be a folder .*"),
    ],
)
def test_without_network_and_data_the_user_is_told_what_to_get(
    command: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(f"saiopt: {sentence}\n", output.err)


def test_a_full_disk_is_answered_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("saiopt.lab.training.run_folder.RunFolder.append", full)
    arguments = ["train", "vit-digits", "--steps", "2", "--runs-dir", str(tmp_path)]
    assert main(arguments) == 2
    assert "the disk must have room" in capsys.readouterr().err


def test_crops_shift_and_mirror_and_depend_on_the_generator_only() -> None:
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6) + 1

    def crop(seed: int, margin: int) -> torch.Tensor:
        return crop_and_flip(images, margin, torch.Generator().manual_seed(seed))

    for one, original in zip(crop(0, 0), images, strict=True):
        assert torch.equal(one, original) or torch.equal(one, original.flip(2))
    assert torch.equal(crop(1, 4), crop(1, 4))
    shifted = [crop(seed, 4) for seed in range(8)]
    assert any((one == 0).any() for one in shifted)
    assert all(
        torch.isin(one, torch.cat([images.flatten(), torch.zeros(1)])).all()
        for one in shifted
    )


def test_random_parts_of_an_image_have_one_size() -> None:
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        part = random_resized_crop(image(50, 0).resize((30, 70)), 8, random)
        assert part.shape == (3, 8, 8)


def test_a_copy_of_the_reference_has_the_best_scores() -> None:
    sentences = ["a b c d e f", "g h i j k l", "m n o p q r"]
    best = text_metrics(sentences, [[sentence] for sentence in sentences])
    assert best["bleu"] == pytest.approx(100)
    assert best["rouge_l"] == pytest.approx(1)
    assert best["cider"] == pytest.approx(10)
    other = text_metrics(sentences, [[s] for s in reversed(sentences)])
    assert all(other[name] < best[name] for name in best)


def test_cider_counts_only_what_is_rare() -> None:
    words = [["the", "cat"], ["the", "dog"]]
    known = [[["the", "cow"]], [["the", "dog"]]]
    # 1-grams: 0 for the first input, 1 for the second; 2-grams alike; none longer.
    assert cider(words, known) == pytest.approx(10 * (0.5 + 0.5) / 4)


def test_no_recipe_is_read_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def guarded(name: str, *rest: object) -> object:
        assert name.partition(".")[0] not in {"datasets", "diffusers", "peft"}
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert main(["recipes"]) == 0
    assert "the paper's size" in capsys.readouterr().out
