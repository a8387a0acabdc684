"""The published rule in float64, slow and obvious; it shares no code with saiopt."""

import math


def gsnr(grad, eps):
    values = grad.double().flatten().tolist()
    n = len(values)
    mean = math.fsum(values) / n
    squares = math.fsum((v - mean) ** 2 for v in values)
    norm = math.sqrt(math.fsum(v * v for v in values))
    return norm / (math.sqrt(squares / (n - 1)) + eps)


def fast_gsnr(grad, eps):
    grad = grad.double()
    return (grad.norm() / (grad.std() + eps)).item()


class Oracle:
    """Keeps θ and m in float64 and applies the rule to the gradients it is given."""

    def __init__(
        self, params, *, lr, momentum, weight_decay, eps=1e-8, scaling="gsnr", sign=-1
    ):
        self.params = [p.detach().double().clone() for p in params]
        self.lr, self.momentum, self.sign = lr, momentum, sign
        self.weight_decay, self.eps, self.scaling = weight_decay, eps, scaling
        self.buffers = [None] * len(self.params)
        self.scales = [None] * len(self.params)

    def step(self, grads):
        grads = [None if g is None else g.detach().double() for g in grads]
        self._calibrate(grads)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            self.params[i] *= 1 - self.lr * self.weight_decay
            if self.scales[i] is None:
                continue
            if self.buffers[i] is None:
                self.buffers[i] = grad.clone()
            else:
                old = self.buffers[i]
                self.buffers[i] = self.momentum * old + (1 - self.momentum) * grad
            self.params[i] += self.sign * self.lr * self.scales[i] * self.buffers[i]

    def _calibrate(self, grads):
        first = {
            i: self._scale(g)
            for i, g in enumerate(grads)
            if g is not None
            and self.scales[i] is None
            and bool(g.isfinite().all())
            and bool(g.any())
        }
        if self.scaling == "gsnr_max" and first:
            if not hasattr(self, "largest"):
                self.largest = max(first.values())
            first = {i: s / self.largest for i, s in first.items()}
        for i, scale in first.items():
            self.scales[i] = scale

    def _scale(self, grad):
        if self.scaling == "none":
            return 1.0
        if self.scaling == "sqrt_numel" or grad.numel() == 1:
            return math.sqrt(grad.numel())
        return fast_gsnr(grad, self.eps)
