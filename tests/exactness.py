"""How far the executions stray from the float64 oracle over a real training run.

    python tests/exactness.py [--steps 200]

A transformer with embeddings, norms and biases trains in float32; the oracle gets the
same gradients. The table shows the largest |θ - θ_oracle| over all entries and steps,
in units of the largest |θ_oracle|, and the largest relative difference of a scale.
Under `"orthogonal"` what is no matrix is `"factored"`.
"""

import argparse

import torch
from finer_oracle import FinerOracle
from models import TinyTransformer, next_token_loss, token_batches
from oracle import Oracle

from saiopt import SGDSaI
from saiopt.scaling import RULES
from saiopt.update import library

FINER = ("factored", "orthogonal")
PUBLISHED = [name for name in RULES if name not in FINER]
EXECUTIONS = {"reference": {"foreach": False}, "foreach": {"foreach": True}}
if not isinstance(library.load(), str):
    EXECUTIONS["fused"] = {"fused": True}


def largest_finer_difference(
    scaling, execution, steps=200, dtype=torch.float32, calibration_steps=20
):
    torch.manual_seed(0)
    model = TinyTransformer().to(dtype)
    params = list(model.parameters())
    rules = [scaling if p.dim() > 1 else "factored" for p in params]
    options = {"lr": 3e-3, "momentum": 0.9, "weight_decay": 0.1}
    oracle = FinerOracle(params, rules, steps=calibration_steps, **options)
    groups = [{"params": [p], "scaling": r} for p, r in zip(params, rules, strict=True)]
    options["calibration_steps"] = calibration_steps
    optimizer = SGDSaI(groups, **options, **EXECUTIONS[execution])
    return train(model, optimizer, oracle, steps)


def train(model, optimizer, oracle, steps):
    params, largest = list(model.parameters()), 0.0
    for ids in token_batches(steps):
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        oracle.step([p.grad for p in params])
        optimizer.step()
        for param, exact in zip(params, oracle.params, strict=True):
            difference = (param.double() - exact).abs().max() / exact.abs().max()
            largest = max(largest, difference.item())
    return largest


def largest_differences(scaling, execution, steps=200, lr=3e-3, dtype=torch.float32):
    torch.manual_seed(0)
    model = TinyTransformer().to(dtype)
    params = list(model.parameters())
    options = {"lr": lr, "momentum": 0.9, "weight_decay": 0.1, "scaling": scaling}
    if scaling in {"gsnr_max", "none"}:
        options["lr"] *= 30
    oracle = Oracle(params, **options)
    optimizer = SGDSaI(params, **options, **EXECUTIONS[execution])
    largest = train(model, optimizer, oracle, steps)
    scales = [optimizer.state[p]["scale"].item() for p in params]
    return largest, max(
        abs(s - exact) / exact for s, exact in zip(scales, oracle.scales, strict=True)
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    print(f"{'scaling':<12}{'execution':<12}{'parameters':>12}{'scales':>12}")
    for scaling in PUBLISHED:
        for execution in EXECUTIONS:
            params, scales = largest_differences(scaling, execution, steps)
            print(f"{scaling:<12}{execution:<12}{params:>12.1e}{scales:>12.1e}")
    for scaling in FINER:
        for execution in EXECUTIONS:
            params = largest_finer_difference(scaling, execution, steps)
            print(f"{scaling:<12}{execution:<12}{params:>12.1e}")


if __name__ == "__main__":
    main()
