"""peft: LoRA of a GPT-2, B with a learning rate of its own (LoRA+)."""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from saiopt import SGDSaI


def train(folder, steps=8):
    torch.manual_seed(0)
    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 32}
    base = GPT2LMHeadModel(GPT2Config(vocab_size=256, **sizes))
    model = get_peft_model(base, LoraConfig(r=32, target_modules=["c_attn", "c_fc"]))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for n, p in trained.items() if "lora_A" in n]},
        # Scales the step, whatever a schedule does to the group's lr.
        {"params": [p for n, p in trained.items() if "lora_B" in n]}
        | {"lr_multiplier": 4.0},
    ]
    optimizer = SGDSaI(groups, 0.02, scaling="orthogonal", state_dtype="int4")
    saved, done = folder / "last.pt", 0
    if saved.exists():
        held = torch.load(saved)
        done = held["step"]
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
    text = torch.tensor(list(Path(torch.__file__).read_bytes()[: steps * 4 * 32]))
    for step, rows in list(enumerate(text.view(steps, 4, 32)))[done:]:
        torch.manual_seed(step)
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 3 == 2:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**parts, "step": step + 1}, saved)
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
