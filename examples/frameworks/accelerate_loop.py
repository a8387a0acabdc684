"""accelerate: a loop of one's own, with save_state and load_state.

Helpers such as get_scales take the optimizer inside: `optimizer.optimizer`.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    data = TensorDataset(torch.randn(128, 32), torch.randint(4, (128,)))
    # The groups look at the model before it is wrapped.
    groups = orthogonal_groups(model, weight_decay=0.1)
    optimizer = SGDSaI(groups, lr=0.02, state_dtype="int4")
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(data, batch_size=8)
    )
    saved, done = folder / "last", 0
    if saved.exists():
        accelerator.load_state(saved)
        done = int((saved / "steps").read_text())
    for step, (inputs, targets) in enumerate(loader):
        if done <= step < steps:
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if step % 3 == 2:
                accelerator.save_state(saved)
                (saved / "steps").write_text(str(step + 1))
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
