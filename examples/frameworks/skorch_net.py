"""skorch: a net with scikit-learn's interface."""

import sys
from pathlib import Path

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint

from saiopt import SGDSaI


class Net(torch.nn.Sequential):
    def __init__(self):
        layers = [torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)]
        super().__init__(*layers, torch.nn.Linear(64, 4))


def train(folder, steps=8):
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 32), torch.randint(4, (64,))
    keeper = Checkpoint(
        monitor=lambda net: len(net.history) % 3 == 0,
        dirname=folder,
        f_optimizer="optimizer.pt",
    )
    net = NeuralNetClassifier(
        Net,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=SGDSaI,
        optimizer__scaling="factored",
        optimizer__state_dtype="int4",
        lr=1e-3,
        batch_size=64,
        train_split=None,
        callbacks=[keeper],
        verbose=0,
    ).initialize()
    if (folder / "optimizer.pt").exists():
        net.load_params(checkpoint=keeper)
    net.partial_fit(inputs, targets, epochs=steps - len(net.history))
    return net.module_


if __name__ == "__main__":
    train(Path(sys.argv[1]))
