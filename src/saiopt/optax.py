"""The rules of SGDSaI as gradient transformations of optax, for programs in JAX.

A leaf of the parameters is a block, its first dimension the rows and all others
together the columns. Everything runs under ``jax.jit`` and on arrays that are sharded
over devices along automatic axes of a mesh: statistics are those of the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from saiopt.scaling.factored import CALIBRATION_STEPS, PHI
from saiopt.scaling.orthogonal import NEWTON_SCHULZ, NUM_STEPS, UPDATE_RMS

# As saiopt.scaling.moments: a deviation below so many spacings of the mean is noise.
_SUM_SPACINGS = 16
_STORED_SPACINGS = 2
_SCALINGS = ("gsnr", "gsnr_max", "sqrt_numel", "none")


class ScaledOnceState(NamedTuple):
    """State of :func:`sgd_sai`.

    Args:
        momentum: m, of the parameters' shapes and dtypes.
        scales: s of each leaf, 0 until its first usable gradient, float32.
        largest: what g-SNR is divided by, 0 until the first usable gradient; 1 but for
            ``"gsnr_max"``.
    """

    momentum: Any
    scales: Any
    largest: Array


class FactoredState(NamedTuple):
    """State of :func:`factored`.

    Args:
        momentum: m, of the parameters' shapes and dtypes.
        counts: gradients that were measured, of each leaf.
        sums: of squared gradients over each leaf's rows, and over its columns, float32;
            of a leaf with fewer than two dimensions twice that of all.
    """

    momentum: Any
    counts: Any
    sums: Any


class OrthogonalState(NamedTuple):
    """State of :func:`orthogonal`.

    Args:
        momentum: m, of the parameters' shapes and dtypes.
        begun: whether each leaf had a usable gradient.
    """

    momentum: Any
    begun: Any


def sgd_sai(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    scaling: str = "gsnr",
) -> optax.GradientTransformation:
    """Make SGD with momentum, scaled once by the first gradient's g-SNR.

    The step is that of :class:`saiopt.SGDSaI`: θ = θ - η (s m + λ θ), which deviates
    from (1 - ηλ) θ - η s m by rounding.

    Args:
        learning_rate: η, or a schedule.
        momentum: μ in [0, 1) of m = μ m + (1-μ) g.
        eps: ε >= 0 of g-SNR.
        weight_decay: λ >= 0, decoupled.
        scaling: ``"gsnr"``, ``"gsnr_max"``, ``"sqrt_numel"`` or ``"none"``.

    Returns:
        The transformation; its update needs the parameters.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Xu et al. (2024), "No More Adam", arXiv 2412.11768, Algorithm 1.
    """
    _require(momentum, weight_decay)
    if eps < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    if scaling not in _SCALINGS:
        raise ValueError(f"scaling must be one of {_SCALINGS}, got {scaling!r}")

    def init(params: optax.Params) -> ScaledOnceState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        scales = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        largest = 0.0 if scaling == "gsnr_max" else 1.0
        return ScaledOnceState(zeros, scales, jnp.asarray(largest, jnp.float32))

    def update(
        updates: optax.Updates,
        state: ScaledOnceState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ScaledOnceState]:
        del params
        measured = jax.tree.map(lambda g: _scale(g, scaling, eps), updates)
        fresh = jax.tree.map(
            lambda s, g: (s == 0) & _is_usable(g), state.scales, updates
        )
        largest = _largest_of(state.largest, measured, fresh)
        scales = jax.tree.map(
            lambda s, new, first: jnp.where(first, new / largest, s),
            state.scales,
            measured,
            fresh,
        )
        begun = jax.tree.map(lambda s: s != 0, scales)
        momenta = _average(state.momentum, updates, fresh, begun, momentum)
        steps = jax.tree.map(lambda s, m: (s * m).astype(m.dtype), scales, momenta)
        return steps, ScaledOnceState(momenta, scales, largest)

    return _with_decay(init, update, learning_rate, weight_decay)


def factored(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 1e-2,
    *,
    calibration_steps: int = CALIBRATION_STEPS,
) -> optax.GradientTransformation:
    """Make SGD with momentum and one scale per row and column, measured, then fixed.

    With r and c the means of g² over rows and columns and over the first usable
    gradients, floored at φ² of their mean v: θ = θ - η (m √(v / (r cᵀ)) + λ θ).

    Args:
        learning_rate: η in AdamW's units, or a schedule.
        momentum: μ in [0, 1) of m = μ m + (1-μ) g.
        weight_decay: λ >= 0, decoupled.
        calibration_steps: K >= 1, gradients that are measured.

    Returns:
        The transformation; its update needs the parameters.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Shazeer and Stern (2018), "Adafactor", arXiv 1804.04235, section 3.
    """
    _require(momentum, weight_decay)
    if calibration_steps < 1:
        raise ValueError(f"calibration_steps must be >= 1, got {calibration_steps}")

    def init(params: optax.Params) -> FactoredState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        counts = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params)
        sums = jax.tree.map(lambda p: _row_and_column_sums(jnp.zeros_like(p)), params)
        return FactoredState(zeros, counts, sums)

    def update(
        updates: optax.Updates, state: FactoredState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, FactoredState]:
        del params
        measures = jax.tree.map(
            lambda k, g: (k < calibration_steps) & _is_usable(g), state.counts, updates
        )
        fresh = jax.tree.map(lambda k, first: (k == 0) & first, state.counts, measures)
        sums = jax.tree.map(
            lambda g, old, now: tuple(
                jnp.where(now, a + b, a)
                for a, b in zip(old, _row_and_column_sums(g), strict=True)
            ),
            updates,
            state.sums,
            measures,
        )
        counts = jax.tree.map(jnp.add, state.counts, measures)
        begun = jax.tree.map(lambda k: k > 0, counts)
        momenta = _average(state.momentum, updates, fresh, begun, momentum)
        steps = jax.tree.map(_scaled_by_sums, momenta, sums, counts)
        return steps, FactoredState(momenta, counts, sums)

    return _with_decay(init, update, learning_rate, weight_decay)


def orthogonal(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
    """Make steps along the orthogonal factor of a momentum that is balanced first.

    θ = θ - η (0.2 √max(rows, columns) NS₅(N(μ m + (1-μ) g)) + λ θ), where N divides
    each row, then each column by its root mean square. For hidden matrices; what trains
    beside them takes :func:`factored` by ``optax.partition``. Products are in the
    gradient's dtype, at the precision that ``jax.default_matmul_precision`` says.

    Args:
        learning_rate: η in AdamW's units, or a schedule.
        momentum: μ in [0, 1) of m = μ m + (1-μ) g.
        weight_decay: λ >= 0, decoupled.

    Returns:
        The transformation; its update needs the parameters.

    Raises:
        ValueError: If an argument is out of its range, or a leaf has fewer than two
            dimensions.

    References:
        Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".
        Liu et al. (2025), "Muon is Scalable for LLM Training", arXiv 2502.16982, 2.2.
    """
    _require(momentum, weight_decay)

    def init(params: optax.Params) -> OrthogonalState:
        for path, leaf in jax.tree.leaves_with_path(params):
            if leaf.ndim < 2:
                raise ValueError(
                    "params must have two dimensions or more for orthogonal, got "
                    f"{leaf.shape} at {jax.tree_util.keystr(path)}"
                )
        zeros = jax.tree.map(jnp.zeros_like, params)
        begun = jax.tree.map(lambda _: jnp.zeros((), bool), params)
        return OrthogonalState(zeros, begun)

    def update(
        updates: optax.Updates,
        state: OrthogonalState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, OrthogonalState]:
        del params
        usable = jax.tree.map(_is_usable, updates)
        fresh = jax.tree.map(lambda b, u: ~b & u, state.begun, usable)
        begun = jax.tree.map(lambda b, u: b | u, state.begun, usable)
        momenta = _average(state.momentum, updates, fresh, begun, momentum)
        steps = jax.tree.map(
            lambda m, g, b: jnp.where(
                b, _direction(momentum * m + (1 - momentum) * g), 0.0
            ).astype(m.dtype),
            momenta,
            updates,
            begun,
        )
        return steps, OrthogonalState(momenta, begun)

    return _with_decay(init, update, learning_rate, weight_decay)


def _with_decay(
    init: Callable[..., Any],
    update: Callable[..., Any],
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
) -> optax.GradientTransformation:
    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _require(momentum: float, weight_decay: float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")


def _is_usable(grad: Array) -> Array:
    """Tell whether all entries are finite and not all are zero."""
    return jnp.isfinite(grad).all() & (grad != 0).any()


def _average(
    momenta: optax.Params,
    grads: optax.Updates,
    fresh: optax.Params,
    begun: optax.Params,
    momentum: float,
) -> optax.Params:
    """Return μ m + (1-μ) g; g at a leaf's first usable gradient, 0 before it."""

    def one(m: Array, g: Array, first: Array, has_begun: Array) -> Array:
        later = momentum * m + (1 - momentum) * g
        return jnp.where(has_begun, jnp.where(first, g, later), m).astype(m.dtype)

    return jax.tree.map(one, momenta, grads, fresh, begun)


def _scale(grad: Array, scaling: str, eps: float) -> Array:
    """Return the scale that a gradient gives its leaf, before any common divisor."""
    root = jnp.asarray(math.sqrt(grad.size), jnp.float32)
    if scaling == "none":
        return jnp.ones_like(root)
    if scaling == "sqrt_numel" or grad.size == 1:
        return root
    values = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    mean = values.mean()
    squared = jnp.square(values - mean).sum()
    std = jnp.sqrt(squared / (grad.size - 1))
    norm = jnp.sqrt(squared + grad.size * jnp.square(mean))
    spacing = float(jnp.finfo(grad.dtype).eps)
    summed = min(spacing, float(jnp.finfo(jnp.float32).eps))
    noise = max(_SUM_SPACINGS * summed, _STORED_SPACINGS * spacing)
    degenerate = std <= noise * jnp.abs(mean)
    return jnp.where(degenerate, root, norm / (std + eps)).astype(jnp.float32)


def _largest_of(largest: Array, measured: optax.Params, fresh: optax.Params) -> Array:
    """Return the divisor of g-SNR, which the first usable gradients fix."""
    found = [
        jnp.where(first, scale, 0.0)
        for scale, first in zip(
            jax.tree.leaves(measured), jax.tree.leaves(fresh), strict=True
        )
    ]
    now = jnp.stack(found).max()
    return jnp.where(largest > 0, largest, jnp.where(now > 0, now, 0.0))


def _row_and_column_sums(grad: Array) -> tuple[Array, Array]:
    squares = jnp.square(grad.astype(jnp.float32))
    if grad.ndim < 2:
        return squares.sum(), squares.sum()
    matrix = squares.reshape(len(squares), -1)
    return matrix.sum(1), matrix.sum(0)


def _scaled_by_sums(m: Array, sums: tuple[Array, Array], count: Array) -> Array:
    """Return m times its rows' and columns' scales, 0 before the first gradient."""
    rows, columns = sums
    measured = jnp.maximum(count, 1)
    mean = rows.sum() / (m.size * measured)
    block = jnp.where(mean > 0, jax.lax.rsqrt(mean), 0.0)
    if m.ndim < 2:
        return (block * m).astype(m.dtype)
    tiny = jnp.finfo(jnp.float32).tiny
    # Relative to the block's, at most 1/φ.
    by_row, by_column = (
        jax.lax.rsqrt(jnp.maximum(part / jnp.maximum(part.mean(), tiny), PHI**2))
        for part in (rows, columns)
    )
    matrix = m.reshape(len(rows), -1)
    scaled = block * by_row[:, None] * matrix * by_column[None, :]
    return scaled.reshape(m.shape).astype(m.dtype)


def _direction(ahead: Array) -> Array:
    """Return the orthogonal factor of a balanced matrix, of AdamW's size."""
    matrix = ahead.reshape(ahead.shape[0], -1)
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    is_tall = matrix.shape[0] > matrix.shape[1]
    size = UPDATE_RMS * math.sqrt(max(matrix.shape))
    x = _divided(_divided(matrix, 1), 0)
    # Columns of norm 1 have a Frobenius norm of the root of their number.
    x /= jnp.sqrt(jnp.maximum((x != 0).any(0).sum(), 1))
    x = x.T if is_tall else x
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (size * (x.T if is_tall else x)).reshape(ahead.shape)


def _divided(matrix: Array, axis: int) -> Array:
    """Divide rows or columns by their norms; what is zero stays zero."""
    norms = jnp.linalg.norm(matrix, axis=axis, keepdims=True)
    return matrix / jnp.where(norms > 0, norms, 1)
