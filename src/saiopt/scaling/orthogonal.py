"""The orthogonal factor of a momentum whose rows and columns are balanced first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .rule import Rule

# Of Jordan et al.: they drive singular values in (0, 1] to about [0.7, 1.2].
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 5
# Root mean square of AdamW's updates, on average over a training.
UPDATE_RMS = 0.2


def orthogonal(stack: Tensor) -> Tensor:
    """Compute the directions of matrices: balanced, orthogonalised, of AdamW's size.

    d = 0.2 √max(rows, columns) · NS₅(N(X)), where N divides each row and then each
    column by its root mean square, and NS₅ are five Newton-Schulz steps towards UVᵀ of
    UΣVᵀ. It deviates from Muon in N.

    Args:
        stack: X, shape (matrices, rows, columns), overwritten.

    Returns:
        The directions, of the same shape; in bfloat16 on accelerators that have it.

    References:
        Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".
        Liu et al. (2025), "Muon is Scalable for LLM Training", arXiv 2502.16982, 2.2.
    """
    size = UPDATE_RMS * math.sqrt(max(stack.shape[-2:]))
    stack = balance(stack)
    if stack.is_cuda and torch.cuda.is_bf16_supported():
        stack = stack.to(torch.bfloat16)
    return newton_schulz(stack, size)


def balance(stack: Tensor) -> Tensor:
    """Divide each row, then each column by its root mean square, in place.

    In float32 norms must lie between 1e-16 and 1e19 to be divided out.

    Args:
        stack: shape (matrices, rows, columns); what is zero stays zero.

    Returns:
        The stack, of matrices whose Frobenius norm is 1.
    """
    # Squares of what is smaller lose their digits: rows below it come out smaller.
    least = math.sqrt(torch.finfo(stack.dtype).smallest_normal * 2**20)
    norms = torch.linalg.vector_norm(stack, dim=-1, keepdim=True)
    stack.div_(norms.clamp_(min=least))
    norms = torch.linalg.vector_norm(stack, dim=-2, keepdim=True)
    # Columns of norm 1 have a Frobenius norm of the root of their number.
    count = (norms > 0).sum(dim=-1, keepdim=True, dtype=stack.dtype).clamp_(min=1)
    return stack.div_(norms.clamp_(min=least).mul_(count.sqrt_()))


def newton_schulz(stack: Tensor, size: float = 1.0) -> Tensor:
    """Drive the singular values of matrices towards a common size.

    X ← a X + (b G + c G²) X with G = X Xᵀ, five times, on the shorter side: the three
    products of a step cost 2 r² (2 n + r) operations for r rows and n >= r columns.
    Beside the stack there is one more of its size, and two of G's.

    Args:
        stack: shape (matrices, rows, columns), of Frobenius norm 1 or less,
            overwritten.
        size: of the singular values, times about [0.7, 1.2].

    Returns:
        Matrices of the same shape and dtype.
    """
    a, b, c = NEWTON_SCHULZ
    is_wide = stack.shape[-2] <= stack.shape[-1]
    spare = torch.empty_like(stack)
    for step in range(NUM_STEPS):
        factor = size if step == NUM_STEPS - 1 else 1.0
        gram = stack @ stack.mT if is_wide else stack.mT @ stack
        series = torch.baddbmm(gram, gram, gram, beta=factor * b, alpha=factor * c)
        del gram
        sides = (series, stack) if is_wide else (stack, series)
        torch.baddbmm(stack, *sides, beta=factor * a, out=spare)
        del series, sides
        stack, spare = spare, stack
    return stack


ORTHOGONAL = Rule(
    lambda moments, _: torch.ones_like(moments.numel),
    direction=orthogonal,
    num_gradients=0,
)
