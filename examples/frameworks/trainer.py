"""Hugging Face Trainer: orthogonal steps with momentum in 4 bits.

The same command goes on from the last checkpoint; `torchrun --nproc-per-node 2` starts
two processes.
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, **sizes))
    text = torch.tensor(list(Path(torch.__file__).read_bytes()[: 64 * 32]))
    examples = [{"input_ids": row, "labels": row} for row in text.view(64, 32)]
    # A scheduler of the Trainer's multiplies the lr that the optimizer is given.
    groups = orthogonal_groups(model, weight_decay=0.1)
    optimizer = SGDSaI(groups, lr=0.02, state_dtype="int4")
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    given = {"train_dataset": examples, "optimizers": (optimizer, None)}
    trainer = Trainer(model, arguments, **given)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
