"""`"factored"` and `"orthogonal"` in float64, slow and obvious; they share no code."""

import torch

PHI = 0.1


def factored_scales(grads):
    """Scales of a matrix, or of a block of one axis, from the gradients measured."""
    squares = torch.stack([g.double() ** 2 for g in grads]).mean(0)
    if squares.dim() < 2:
        return 1 / squares.mean().sqrt()
    matrix = squares.reshape(len(squares), -1)
    mean = matrix.mean().item()
    rows = [max(row.mean().item(), PHI**2 * mean) for row in matrix]
    columns = [max(column.mean().item(), PHI**2 * mean) for column in matrix.T]
    result = [[(r * c / mean) ** -0.5 for c in columns] for r in rows]
    return torch.tensor(result, dtype=torch.float64).view(squares.shape)


def balanced(matrix):
    """Rows, then columns over their root mean squares; zeros stay zeros."""
    matrix = matrix.clone()
    for row in matrix:
        if row.any():
            row /= (row**2).mean().sqrt()
    for column in matrix.T:
        if column.any():
            column /= (column**2).mean().sqrt()
    return matrix


def newton_schulz(matrix):
    """Five steps on the singular values, which they do not mix."""
    u, sizes, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    sizes = sizes / (sizes**2).sum().sqrt().clamp(min=1e-300)
    for _ in range(5):
        sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
    return u @ torch.diag(sizes) @ vt


def orthogonal_direction(matrix):
    size = 0.2 * max(matrix.shape) ** 0.5
    return size * newton_schulz(balanced(matrix.double()))


class FinerOracle:
    """Keeps θ and m in float64; `rules` says "factored" or "orthogonal" per block."""

    def __init__(self, params, rules, *, lr, momentum, weight_decay, steps):
        self.params = [p.detach().double().clone() for p in params]
        self.rules, self.lr, self.momentum = rules, lr, momentum
        self.weight_decay, self.steps = weight_decay, steps
        self.buffers = [None] * len(self.params)
        self.measured = [[] for _ in self.params]

    def step(self, grads):
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            grad = grad.detach().double()
            self.params[i] *= 1 - self.lr * self.weight_decay
            usable = bool(grad.isfinite().all()) and bool(grad.any())
            if usable and len(self.measured[i]) < self.steps:
                self.measured[i].append(grad)
            if not self.measured[i]:
                continue
            if self.buffers[i] is None:
                self.buffers[i] = grad.clone()
            else:
                old = self.buffers[i]
                self.buffers[i] = self.momentum * old + (1 - self.momentum) * grad
            self.params[i] -= self.lr * self.direction(i, grad)

    def direction(self, i, grad):
        if self.rules[i] == "factored":
            return factored_scales(self.measured[i]) * self.buffers[i]
        ahead = self.momentum * self.buffers[i] + (1 - self.momentum) * grad
        return orthogonal_direction(ahead.flatten(1)).view(grad.shape)
