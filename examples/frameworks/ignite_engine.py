"""PyTorch-Ignite: an engine, its checkpoints, and the optimizer in them."""

import sys
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver

from saiopt import SGDSaI, orthogonal_groups


def train(folder, steps=8):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))
    groups = orthogonal_groups(model, weight_decay=0.1)
    optimizer = SGDSaI(groups, lr=0.02, state_dtype="int4")
    loss = torch.nn.functional.cross_entropy
    engine = create_supervised_trainer(model, optimizer, loss)
    parts = {"model": model, "optimizer": optimizer, "engine": engine}
    saver = DiskSaver(str(folder), create_dir=True, require_empty=False)
    keeper = Checkpoint(parts, saver, filename_pattern="last.pt", n_saved=None)
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=3), keeper)
    batch = (torch.randn(8, 32), torch.randint(4, (8,)))
    if (folder / "last.pt").exists():
        Checkpoint.load_objects(parts, torch.load(folder / "last.pt"))
    engine.run([batch], max_epochs=steps)
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
