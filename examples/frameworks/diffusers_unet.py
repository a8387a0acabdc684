"""diffusers: LoRA of a UNet, and the noise that it is to predict."""

import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from peft import LoraConfig, inject_adapter_in_model

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["AttnDownBlock2D"], "up_block_types": ["UpBlock2D"]}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    unet = UNet2DModel(**sizes, **blocks, block_out_channels=[128], layers_per_block=1)
    unet.requires_grad_(False)
    config = LoraConfig(r=32, target_modules=["to_q", "to_v"])
    model = inject_adapter_in_model(config, unet)
    groups = orthogonal_groups(model, weight_decay=0.01)
    optimizer = SGDSaI(groups, lr=0.01, state_dtype="int4")
    scheduler = DDPMScheduler()
    saved, done = folder / "last.pt", 0
    if saved.exists():
        held = torch.load(saved)
        done = held["step"]
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
    for step in range(done, steps):
        torch.manual_seed(step)
        noise, at = torch.randn(4, 1, 8, 8), torch.randint(1000, (4,))
        noisy = scheduler.add_noise(torch.ones(4, 1, 8, 8), noise, at)
        torch.nn.functional.mse_loss(model(noisy, at).sample, noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 3 == 2:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**parts, "step": step + 1}, saved)
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
