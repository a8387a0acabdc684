"""Lightning's Trainer."""

import sys
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from saiopt import SGDSaI, orthogonal_groups


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4))

    def training_step(self, batch):
        inputs, targets = batch
        return torch.nn.functional.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self):
        groups = orthogonal_groups(self, weight_decay=0.1)
        return SGDSaI(groups, lr=0.02, state_dtype="int4")


def train(folder, steps=8, devices=1):
    torch.manual_seed(0)
    model = Classifier()
    data = TensorDataset(torch.randn(128, 32), torch.randint(4, (128,)))
    keeper = ModelCheckpoint(folder, every_n_train_steps=3, save_last=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    where = {"accelerator": "cpu", "devices": devices, "default_root_dir": folder}
    trainer = Trainer(max_steps=steps, callbacks=keeper, logger=False, **where, **quiet)
    last = folder / "last.ckpt"
    # Lightning goes on at another batch of an epoch, so here an epoch is one batch.
    loader = DataLoader(data, batch_size=128)
    trainer.fit(model, loader, ckpt_path=last if last.exists() else None)
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]))
