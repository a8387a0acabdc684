"""A rule of three gradients with a scale per row: what a finer rule has to write."""

import contextlib

import torch

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


class RowMeanOracle:
    """The same in float64, slow and obvious, for gradients that are usable or not."""

    def __init__(self, params, lr, momentum, weight_decay):
        self.params = [p.detach().double().clone() for p in params]
        self.lr, self.momentum, self.decay = lr, momentum, weight_decay
        self.buffers = [None] * len(self.params)
        self.measured = [[] for _ in self.params]

    def step(self, grads):
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            grad = grad.double()
            usable = bool(grad.isfinite().all()) and bool(grad.any())
            self.params[i] *= 1 - self.lr * self.decay
            if usable and len(self.measured[i]) < 3:
                self.measured[i].append(grad)
            if not self.measured[i]:
                continue
            if self.buffers[i] is None:
                self.buffers[i] = grad.clone()
            else:
                mu = self.momentum
                self.buffers[i] = mu * self.buffers[i] + (1 - mu) * grad
            self.params[i] -= self.lr * self.scale(i) * self.buffers[i]

    def scale(self, i):
        rows, cols = matrix_shape(self.params[i].shape)
        sizes = torch.stack([g.abs() for g in self.measured[i]])
        if self.params[i].dim() < 2:
            return 1 / sizes.mean()
        means = sizes.reshape(len(sizes), rows, cols).mean(dim=(0, 2))
        return (1 / means).view(-1, *[1] * (self.params[i].dim() - 1))
