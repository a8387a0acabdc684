"""Lightning Fabric: a loop of one's own."""

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    fabric.launch()
    layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    # Fabric converts parameters: the groups are made of what it returns.
    model = fabric.setup_module(net)
    groups = orthogonal_groups(model, weight_decay=0.1)
    optimizer = SGDSaI(groups, lr=0.02, state_dtype="int4")
    optimizer = fabric.setup_optimizers(optimizer)
    inputs = torch.randn(steps, 8, 32)
    targets = torch.randint(4, (steps, 8))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    saved = folder / "last.ckpt"
    if saved.exists():
        fabric.load(saved, state)
    for step in range(state["step"], steps):
        loss = torch.nn.functional.cross_entropy(model(inputs[step]), targets[step])
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] = step + 1
        if step % 3 == 2:
            fabric.save(saved, state)
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
