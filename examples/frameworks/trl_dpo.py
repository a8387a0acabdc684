"""TRL's DPOTrainer, given a finished optimizer."""

import copy
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer
from trl_sft import WORDS, bytes_tokenizer

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **sizes))
    groups = orthogonal_groups(model, weight_decay=0.1)
    optimizer = SGDSaI(groups, lr=0.002, state_dtype="int4")
    pairs = [
        {"prompt": f"{i} + 1 =", "chosen": f" {i + 1}", "rejected": f" {i + 2}"}
        for i in range(64)
    ]
    usual = {"max_steps": steps, "save_steps": 3, "use_cpu": True, "disable_tqdm": True}
    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(str(folder), max_length=64, report_to="none", **usual),
        train_dataset=Dataset.from_list(pairs),
        processing_class=bytes_tokenizer(),
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
