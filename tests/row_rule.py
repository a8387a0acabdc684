"""A rule of three gradients with a scale per row: what a finer rule has to write."""

import contextlib

import torch
from finer_oracle import FinerOracle

from saiopt.scaling import RULES, Measurement, Rule, Scales, matrix_shape


def scales(sums):
    if sums.row is None:
        return Scales(sums.shape[0] * sums.num_gradients / sums.block)
    return Scales(torch.ones(()), row=sums.shape[1] * sums.num_gradients / sums.row)


# s = 1 / (mean of |g|, over a row or a vector, and over three gradients).
ROW_MEAN = Rule(
    measurement=Measurement(
        entries=torch.abs,
        axes=lambda shape: ("row",) if len(shape) > 1 else (),
        scales=scales,
    ),
    num_gradients=3,
)
# A direction of the whole matrix: all rows get the matrix's largest row norm.
ALONG = Rule(
    direction=lambda stack: stack / stack.norm(dim=2).amax(dim=1)[:, None, None]
)


@contextlib.contextmanager
def known(**rules):
    """Let the rules be chosen by name for a while: what one line does for good."""
    rules = {"row_mean": ROW_MEAN, "along": ALONG, **rules}
    RULES.update(rules)
    try:
        yield
    finally:
        for name in rules:
            del RULES[name]


class RowMeanOracle(FinerOracle):
    """The same in float64, slow and obvious, for gradients that are usable or not."""

    def __init__(self, params, lr, momentum, weight_decay):
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, ["row_mean"] * len(params), steps=3, **options)

    def direction(self, i, grad):
        return self.scale(i) * self.buffers[i]

    def scale(self, i):
        rows, cols = matrix_shape(self.params[i].shape)
        sizes = torch.stack([g.abs() for g in self.measured[i]])
        if self.params[i].dim() < 2:
            return 1 / sizes.mean()
        means = sizes.reshape(len(sizes), rows, cols).mean(dim=(0, 2))
        return (1 / means).view(-1, *[1] * (self.params[i].dim() - 1))
