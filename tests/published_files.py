"""Small local files in the forms in which data and models are published."""

from pathlib import Path

from saiopt.lab.recipe import override
from saiopt.lab.recipes import get_recipe
from saiopt.lab.task import Task


def load(recipe: str, **settings: object) -> Task:
    texts = {f"task.{name}": str(value) for name, value in settings.items()}
    return override(get_recipe(recipe), texts).task.load()


def write_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(["name[Aromi] | Aromi is an Indian place"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder
