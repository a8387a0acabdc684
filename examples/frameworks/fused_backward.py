"""A trainer with a fused backward pass, as OneTrainer's and kohya's: step_parameter.

Each parameter steps when its gradient is complete, and frees it.
"""

import sys
from pathlib import Path

import torch

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    groups = orthogonal_groups(model, weight_decay=0.1)
    optimizer = SGDSaI(groups, lr=0.02, state_dtype="int4")
    for group in optimizer.param_groups:
        for index, param in enumerate(group["params"]):

            def finish(param, group=group, index=index):
                optimizer.step_parameter(param, group, index)
                param.grad = None

            param.register_post_accumulate_grad_hook(finish)
    saved, done = folder / "last.pt", 0
    if saved.exists():
        held = torch.load(saved)
        done = held["step"]
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
    inputs, targets = torch.randn(steps, 8, 32), torch.randint(4, (steps, 8))
    for step in range(done, steps):
        torch.nn.functional.cross_entropy(model(inputs[step]), targets[step]).backward()
        if step % 3 == 2:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**parts, "step": step + 1}, saved)
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
