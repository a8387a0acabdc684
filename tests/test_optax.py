"""The transformations for JAX take the steps of the optimizer for PyTorch."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from saiopt import SGDSaI

jax = pytest.importorskip("jax", reason="needs jax, optax (pip install 'saiopt[jax]')")

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from saiopt import optax as sai  # noqa: E402

LR, DECAY, STEPS = 0.02, 0.1, 100
SHAPES = {"wide": (3, 8), "tall": (9, 4), "kernel": (6, 2, 3, 3), "bias": (7,), "g": ()}
MATRICES = {name: shape for name, shape in SHAPES.items() if len(shape) > 1}


def arrays(shapes, seed):
    draw = np.random.default_rng(seed)
    return {k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def gradients(shapes, step):
    """Leaves that wait for a usable gradient, rows that never see one, zeros later."""
    found = arrays(shapes, 100 + step)
    if step < 2:
        found["wide"][:] = 0 if step == 0 else np.nan
    found["tall"][1] = 0
    if step == 5:
        found["kernel"][:] = 0
    return found


def by_torch(shapes, options, steps=STEPS):
    params = {k: torch.tensor(v) for k, v in arrays(shapes, 0).items()}
    optimizer = SGDSaI(params.values(), lr=LR, weight_decay=DECAY, **options)
    for step in range(steps):
        for name, grad in gradients(shapes, step).items():
            params[name].grad = torch.tensor(grad)
        optimizer.step()
    return {k: v.numpy() for k, v in params.items()}


def by_jax(shapes, transformation, steps=STEPS):
    params = jax.tree.map(jnp.asarray, arrays(shapes, 0))

    @jax.jit
    def step_of(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for step in range(steps):
        params, state = step_of(params, state, gradients(shapes, step))
    return jax.tree.map(np.asarray, params)


def largest_difference(ours, theirs):
    """In units of the largest parameter: a single entry may pass by 0."""
    largest = max(np.abs(x).max() for x in theirs.values())
    return max(np.abs(ours[k] - theirs[k]).max() for k in ours) / largest


@pytest.mark.parametrize("scaling", ["gsnr", "gsnr_max", "sqrt_numel", "none"])
def test_sgd_sai_is_the_rule_of_the_paper(scaling):
    ours = by_jax(SHAPES, sai.sgd_sai(LR, weight_decay=DECAY, scaling=scaling))
    theirs = by_torch(SHAPES, {"scaling": scaling})
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_factored_measures_and_then_keeps_its_scales(momentum):
    options = {"momentum": momentum, "calibration_steps": 7}
    ours = by_jax(SHAPES, sai.factored(LR, weight_decay=DECAY, **options))
    theirs = by_torch(SHAPES, {"scaling": "factored", **options})
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_orthogonal_steps_along_the_balanced_factor(momentum):
    ours = by_jax(MATRICES, sai.orthogonal(LR, momentum, DECAY))
    theirs = by_torch(MATRICES, {"scaling": "orthogonal", "momentum": momentum})
    assert largest_difference(ours, theirs) < 1e-4


def test_roles_are_parts_of_a_partition():
    rules = optax.partition(
        {"hidden": sai.orthogonal(LR), "rest": sai.factored(LR)},
        {name: "hidden" if name in MATRICES else "rest" for name in SHAPES},
    )
    ours = by_jax(SHAPES, rules, steps=5)
    alone = by_jax(MATRICES, sai.orthogonal(LR), steps=5)
    for name, expected in alone.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-6)


@pytest.mark.parametrize("rule", [sai.sgd_sai, sai.factored, sai.orthogonal])
def test_a_part_may_be_empty(rule):
    parts = {"some": sai.sgd_sai(LR), "none": rule(LR)}
    found = by_jax(SHAPES, optax.partition(parts, dict.fromkeys(SHAPES, "some")), 3)
    expected = by_jax(SHAPES, sai.sgd_sai(LR), 3)
    assert all(np.array_equal(found[name], expected[name]) for name in SHAPES)


def test_gradients_are_looked_through_only_while_a_leaf_waits():

    params = {"a": jnp.ones((2, 3))}
    for rule in (sai.sgd_sai(LR), sai.factored(LR, calibration_steps=1)):
        _, state = rule.update({"a": jnp.full((2, 3), 2.0)}, rule.init(params), params)
        jaxpr = str(jax.make_jaxpr(rule.update)(params, state, params))
        assert jaxpr.count("cond[") == 1
        measured = state[0].measured
        _, state = rule.update({"a": jnp.full((2, 3), jnp.nan)}, state, params)
        jax.tree.map(np.testing.assert_array_equal, measured, state[0].measured)


def test_a_schedule_is_followed():
    schedule = optax.linear_schedule(LR, 0.0, 10)
    params = arrays(SHAPES, 0)
    rule = sai.sgd_sai(schedule)
    state = rule.init(params)
    for _ in range(11):
        updates, state = rule.update(gradients(SHAPES, 3), state, params)
    assert not any(np.asarray(u).any() for u in updates.values())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_stay_sixteen_bits(dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays(MATRICES, 0))
    for rule in (sai.sgd_sai(LR), sai.factored(LR), sai.orthogonal(LR)):
        state = rule.init(params)
        updates, state = rule.update(params, state, params)
        assert {u.dtype for u in updates.values()} == {jnp.dtype(dtype)}
        assert {m.dtype for m in state[0].momentum.values()} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sai.sgd_sai(LR, momentum=1.0), r"momentum must be in \[0, 1\), got 1"),
        (
            lambda: sai.factored(LR, weight_decay=-1),
            "weight_decay must be >= 0, got -1",
        ),
        (lambda: sai.sgd_sai(LR, eps=-1), "eps must be >= 0, got -1"),
        (lambda: sai.sgd_sai(LR, scaling="x"), "scaling must be one of .* got 'x'"),
        (
            lambda: sai.factored(LR, calibration_steps=0),
            "calibration_steps must be >= 1, got 0",
        ),
        (
            lambda: sai.orthogonal(LR).init(arrays(SHAPES, 0)),
            r"two dimensions or more for orthogonal, got \(7,\) at \['bias'\]",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sharded_arrays_are_measured_as_whole_ones():
    """In a process of its own, for the number of devices is fixed at the start."""
    script = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from saiopt import optax as sai
        mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
        draw = np.random.default_rng(0)
        params = {"a": draw.normal(size=(8, 6)), "b": draw.normal(size=(4, 12))}
        params = {k: v.astype(np.float32) for k, v in params.items()}
        cut = NamedSharding(mesh, PartitionSpec("x"))
        shards = {k: jax.device_put(v, cut) for k, v in params.items()}
        for rule in (sai.sgd_sai(0.1), sai.factored(0.1), sai.orthogonal(0.1)):
            found = []
            for given in (params, shards):
                state = rule.init(given)
                for _ in range(3):
                    updates, state = jax.jit(rule.update)(given, state, given)
                found.append(updates)
            for name in params:
                assert len(found[1][name].sharding.device_set) == 4
                np.testing.assert_allclose(*(f[name] for f in found), rtol=2e-4)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        env={
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
    )
