"""The rules of SGDSaI as gradient transformations of optax, for programs in JAX.

A leaf of the parameters is a block, its first dimension the rows and all others
together the columns. Everything runs under ``jax.jit`` and on arrays that are sharded
over devices along automatic axes of a mesh: statistics are those of the whole array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from saiopt.scaling.factored import CALIBRATION_STEPS, PHI
from saiopt.scaling.moments import STORED_SPACINGS, SUM_SPACINGS
from saiopt.scaling.orthogonal import NEWTON_SCHULZ, NUM_STEPS, UPDATE_RMS

_SCALINGS = ("gsnr", "gsnr_max", "sqrt_numel", "none")


class State(NamedTuple):
    """State of a transformation, without the schedule's.

    Attributes:
        momentum: m, of the parameters' shapes and dtypes.
        measured: of :func:`sgd_sai` :class:`Scales`, of :func:`factored` :class:`Sums`,
            of :func:`orthogonal` whether each leaf had a usable gradient.
    """

    momentum: Any
    measured: Any


class Scales(NamedTuple):
    """What :func:`sgd_sai` measures.

    Attributes:
        scales: s of each leaf, 0 until its first usable gradient, float32.
        largest: what g-SNR is divided by, 0 until the first usable gradient; 1 but for
            ``"gsnr_max"``.
    """

    scales: Any
    largest: Array


class Sums(NamedTuple):
    """What :func:`factored` measures.

    Attributes:
        counts: gradients that were measured, of each leaf.
        sums: of squared gradients over each leaf's rows, and over its columns, float32;
            of a leaf with fewer than two dimensions twice that of all.
    """

    counts: Any
    sums: Any


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What tells one rule from another; trees have a leaf for each parameter's.

    Args:
        start: from the parameters to what is measured before any gradient.
        waits: from what is measured to whether each leaf is to be measured again.
        begun: from it to whether each leaf had a usable gradient.
        measure: from it, gradients and whether each is to be measured, to what is
            measured then.
        direction: from momenta, gradients and what is measured to the steps.
    """

    start: Callable[[Any], Any]
    waits: Callable[[Any], Any]
    begun: Callable[[Any], Any]
    measure: Callable[[Any, Any, Any], Any]
    direction: Callable[[Any, Any, Any], Any]


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

    def start(params: optax.Params) -> Scales:
        scales = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        largest = 0.0 if scaling == "gsnr_max" else 1.0
        return Scales(scales, jnp.asarray(largest, jnp.float32))

    def measure(known: Scales, grads: optax.Updates, now: Any) -> Scales:  # noqa: ANN401
        found = jax.tree.map(lambda g: _scale(g, scaling, eps), grads)
        largest = _largest_of(known.largest, found, now)
        scales = jax.tree.map(
            lambda s, new, first: jnp.where(first, new / largest, s),
            known.scales,
            found,
            now,
        )
        return Scales(scales, largest)

    rule = _Rule(
        start,
        lambda known: jax.tree.map(lambda s: s == 0, known.scales),
        lambda known: jax.tree.map(lambda s: s != 0, known.scales),
        measure,
        lambda momenta, _, known: jax.tree.map(
            lambda m, s: (s * m).astype(m.dtype), momenta, known.scales
        ),
    )
    return _transformation(rule, learning_rate, momentum, weight_decay)


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

    def start(params: optax.Params) -> Sums:
        counts = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params)
        sums = jax.tree.map(lambda p: _row_and_column_sums(jnp.zeros_like(p)), params)
        return Sums(counts, sums)

    def measure(known: Sums, grads: optax.Updates, now: Any) -> Sums:  # noqa: ANN401
        sums = jax.tree.map(
            lambda g, old, counts: tuple(
                jnp.where(counts, a + b, a)
                for a, b in zip(old, _row_and_column_sums(g), strict=True)
            ),
            grads,
            known.sums,
            now,
        )
        return Sums(jax.tree.map(jnp.add, known.counts, now), sums)

    rule = _Rule(
        start,
        lambda known: jax.tree.map(lambda k: k < calibration_steps, known.counts),
        lambda known: jax.tree.map(lambda k: k > 0, known.counts),
        measure,
        lambda momenta, _, known: jax.tree.map(
            _scaled_by_sums, momenta, known.sums, known.counts
        ),
    )
    return _transformation(rule, learning_rate, momentum, weight_decay)


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

    def start(params: optax.Params) -> Any:  # noqa: ANN401 - a tree
        for path, leaf in jax.tree.leaves_with_path(params):
            if leaf.ndim < 2:
                raise ValueError(
                    "params must have two dimensions or more for orthogonal, got "
                    f"{leaf.shape} at {jax.tree_util.keystr(path)}"
                )
        return jax.tree.map(lambda _: jnp.zeros((), bool), params)

    def step(m: Array, g: Array, begun: Array) -> Array:
        ahead = momentum * m + (1 - momentum) * g
        return jnp.where(begun, _direction(ahead), 0.0).astype(m.dtype)

    rule = _Rule(
        start,
        lambda begun: jax.tree.map(jnp.logical_not, begun),
        lambda begun: begun,
        lambda begun, _, now: jax.tree.map(jnp.logical_or, begun, now),
        lambda momenta, grads, begun: jax.tree.map(step, momenta, grads, begun),
    )
    return _transformation(rule, learning_rate, momentum, weight_decay)


def _transformation(
    rule: _Rule,
    learning_rate: optax.ScalarOrSchedule,
    momentum: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    def init(params: optax.Params) -> State:
        return State(jax.tree.map(jnp.zeros_like, params), rule.start(params))

    def update(
        updates: optax.Updates, state: State, params: optax.Params | None = None
    ) -> tuple[optax.Updates, State]:
        del params
        before, waits = state.measured, rule.waits(state.measured)

        def measure() -> Any:  # noqa: ANN401 - a tree
            usable = jax.tree.map(_is_usable, updates)
            return rule.measure(
                before, updates, jax.tree.map(jnp.logical_and, waits, usable)
            )

        # A gradient is looked through as long as some leaf waits for one, not later.
        any_waits = jax.tree.reduce(jnp.logical_or, waits, jnp.zeros((), bool))
        measured = jax.lax.cond(any_waits, measure, lambda: before)
        began, begun = rule.begun(before), rule.begun(measured)

        def average(m: Array, g: Array, began: Array, begun: Array) -> Array:
            later = jnp.where(began, momentum * m + (1 - momentum) * g, g)
            return jnp.where(begun, later, m).astype(m.dtype)

        momenta = jax.tree.map(average, state.momentum, updates, began, begun)
        return rule.direction(momenta, updates, measured), State(momenta, measured)

    return optax.chain(
        optax.GradientTransformation(init, cast("optax.TransformUpdateFn", update)),
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
    noise = max(SUM_SPACINGS * summed, STORED_SPACINGS * spacing)
    degenerate = std <= noise * jnp.abs(mean)
    return jnp.where(degenerate, root, norm / (std + eps)).astype(jnp.float32)


def _largest_of(largest: Array, measured: optax.Params, fresh: optax.Params) -> Array:
    """Return the divisor of g-SNR, which the first usable gradients fix."""
    found = jax.tree.map(lambda s, first: jnp.where(first, s, 0.0), measured, fresh)
    now = jax.tree.reduce(jnp.maximum, found, jnp.zeros(()))
    return jnp.where(largest > 0, largest, now)


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
