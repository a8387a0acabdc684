"""TRL's SFTTrainer, which makes the optimizer itself: class and arguments, lr too."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from saiopt import SGDSaI

WORDS = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]


def bytes_tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def train(folder, steps=8):
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **sizes))
    lines = [line for line in Path(torch.__file__).read_text().splitlines() if line]
    texts = Dataset.from_list([{"text": line} for line in lines[:64]])
    usual = {"max_steps": steps, "save_steps": 3, "use_cpu": True, "disable_tqdm": True}
    arguments = SFTConfig(str(folder), max_length=64, report_to="none", **usual)
    options = {"lr": 1e-3, "scaling": "factored", "state_dtype": "int4"}
    given = {"train_dataset": texts, "processing_class": bytes_tokenizer()}
    given["optimizer_cls_and_kwargs"] = (SGDSaI, options)
    trainer = SFTTrainer(model, arguments, **given)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
