import copy
import gc
import warnings

import checkpoints
import layouts
import pytest
import torch
from layouts import LAYOUTS, OPTIONS
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictType,
)
from torch.distributed.tensor import DTensor, Partial, Replicate
from workers import Workers

from saiopt import SGDSaI, decay_groups, get_scales, set_scales

BF16 = torch.bfloat16
ALL_LAYOUTS = pytest.mark.parametrize("name", LAYOUTS)


@ALL_LAYOUTS
def test_a_layout_scales_and_trains_like_one_process(workers, name):
    found = layouts.compare(workers, name)
    tolerance = LAYOUTS[name].tolerance
    assert found.scales <= tolerance
    assert found.params <= tolerance
    assert found.first_collectives <= (2 if name == "FSDP2 + TP" else 1)
    assert found.later_collectives == 0


WITH_ROWS = [name for name in LAYOUTS if "FSDP1" not in name]


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_layout_measures_rows_and_columns_like_one_process(workers, name):
    found = layouts.compare(workers, name, "factored", steps=8)
    assert found.scales <= 2 * LAYOUTS[name].tolerance
    assert found.params <= LAYOUTS[name].tolerance
    assert found.first_collectives <= (2 if name == "FSDP2 + TP" else 1)
    assert found.later_collectives == 0


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_layout_orthogonalises_like_one_process_and_shares_the_work(workers, name):
    found = layouts.compare(workers, name, "orthogonal", steps=8)
    assert found.scales <= 2 * LAYOUTS[name].tolerance
    assert found.params <= LAYOUTS[name].tolerance
    if name in ("DDP", "ZeroRedundancyOptimizer"):
        assert found.later_collectives == 0
    else:
        # There and back for each mesh; whole matrices need not go there.
        groups = 2 if name == "FSDP2 + TP" else 1
        assert found.later_collectives == (1 if "replicated" in name else 2 * groups)
    # Two of four matrices are equally dear, one is two thirds of that.
    assert found.busiest <= (1 if name == "DDP" else 0.65)


@ALL_LAYOUTS
def test_a_layout_rounds_like_one_process(workers, name):
    # torch keeps a mesh for an equal one, whose groups may be those of a test that is
    # over: layouts with meshes of two dimensions get processes that have seen none.
    fresh = Workers() if LAYOUTS[name].world == 4 else None
    try:
        assert layouts.count_rounded_otherwise(fresh or workers, name) == 0
    finally:
        if fresh:
            fresh.stop()


@pytest.mark.parametrize("name", ["DDP", "ZeroRedundancyOptimizer", "FSDP2", "HSDP"])
def test_gsnr_max_divides_by_the_largest_of_all_ranks(workers, name):
    found = layouts.compare(workers, name, scaling="gsnr_max", steps=5)
    assert found.scales <= 1e-6
    assert found.params <= 1e-6
    assert found.later_collectives == 0


def warnings_of_ours():
    """Step and load where the optimizer asks all ranks, with warnings as errors."""
    model = layouts.fsdp1(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS, scaling="gsnr_max")
    for ids, labels in layouts.batches(2):
        nn.functional.cross_entropy(model(ids), labels).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())


def test_asking_all_ranks_warns_of_nothing(workers):
    workers.run(2, warnings_of_ours)


def state_kinds(name):
    model = LAYOUTS[name].spread(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    layouts.train(model, optimizer, LAYOUTS[name].share, steps=1)
    return {
        key: {type(entry[key]) for entry in optimizer.state.values()}
        | {entry[key].shape for entry in optimizer.state.values() if key == "scale"}
        for key in ("scale", "momentum_buffer")
    }


@pytest.mark.parametrize("name", ["FSDP2", "HSDP", "FSDP2 + TP"])
def test_the_scale_is_a_plain_scalar_and_the_momentum_like_its_parameter(workers, name):
    for kinds in workers.run(LAYOUTS[name].world, state_kinds, name):
        assert kinds["scale"] == {torch.Tensor, torch.Size(())}
        assert kinds["momentum_buffer"] == {DTensor}


def late_block():
    """Train with a block whose first gradients are zero, then none, then real."""
    model = layouts.fsdp2(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    history = []
    for step, batch in enumerate(layouts.batches(6)):
        ids, labels = layouts.by_rank(batch, torch.distributed.get_rank(), 2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        if step < 2:
            model.up.weight.grad = torch.zeros_like(model.up.weight)
        elif step < 4:
            model.up.weight.grad = None
        with layouts.Collectives() as sent:
            optimizer.step()
        history.append((get_scales(optimizer, model)["up.weight"], sent.count))
    return history


def test_a_sharded_block_that_calibrates_late_ends_its_collectives(workers):
    for history in workers.run(2, late_block):
        scales, sent = zip(*history, strict=True)
        assert scales[:4] == (0, 0, 0, 0)
        assert scales[4] == scales[5] > 0
        assert sent == (1, 1, 1, 1, 1, 0)


def one_rank_without_gradient():
    model = layouts.fsdp2(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
        param.grad.to_local().copy_(torch.randn_like(param.to_local()))
    if torch.distributed.get_rank() == 1:
        model.up.weight.grad = None
    optimizer.step()
    return get_scales(optimizer, model)


def test_ranks_agree_on_a_block_whose_gradient_one_of_them_lacks(workers):
    first, second = workers.run(2, one_rank_without_gradient)
    assert first == second
    assert first["up.weight"] > 0


def step_under_another_default_device(name):
    model = LAYOUTS[name].spread(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    ids, labels = layouts.the_same(next(layouts.batches(1)), 0, 1)
    nn.functional.cross_entropy(model(ids), labels).backward()
    with torch.device("meta"):
        optimizer.step()
    return get_scales(optimizer, model)


@pytest.mark.parametrize("name", ["FSDP1, original parameters", "FSDP2"])
def test_the_default_device_does_not_matter_to_shards(workers, name):
    _, expected, _ = layouts.run_alone("gsnr", 1)
    for found in workers.run(2, step_under_another_default_device, name):
        assert found == pytest.approx(expected, rel=1e-6)


def partial_gradient():
    mesh = init_device_mesh("cpu", (2,))
    param = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Replicate()]))
    part = torch.tensor([1.0, 2.0, 3.0, 4.0]) * (torch.distributed.get_rank() + 1)
    param.grad = DTensor.from_local(part, mesh, [Partial("sum")])
    SGDSaI([param], 0.1, weight_decay=0.0, scaling="none").step()
    return param.to_local().detach()


def test_a_gradient_that_is_a_partial_sum_is_reduced_first(workers):
    expected = 1 - 0.1 * 3 * torch.tensor([1.0, 2.0, 3.0, 4.0])
    for param in workers.run(2, partial_gradient):
        torch.testing.assert_close(param, expected)


def flattened():
    model = FullyShardedDataParallel(
        layouts.make_net(), use_orig_params=False, device_id=layouts.CPU
    )
    with pytest.raises(RuntimeError, match="use_orig_params=True") as error:
        SGDSaI(model.parameters())
    return str(error.value)


def test_fsdp1_without_original_parameters_is_refused(workers):
    assert "blocks" in workers.run(1, flattened)[0]


def heap_scans(name):
    """How often the heap is read in the first steps of two optimizers, and after."""
    model = LAYOUTS[name].spread(layouts.make_net())
    scans = []
    read = gc.get_objects
    gc.get_objects = lambda: scans.append(1) or read()
    try:
        counts = []
        for _ in range(2):
            optimizer = SGDSaI(model.parameters(), **OPTIONS)
            layouts.train(model, optimizer, LAYOUTS[name].share, 2)
            counts.append(len(scans))
        return counts
    finally:
        gc.get_objects = read


@pytest.mark.parametrize(("name", "scans"), [("DDP", 0), ("FSDP1, hybrid", 1)])
def test_the_heap_is_read_once_and_for_fsdp1_only(workers, name, scans):
    world = LAYOUTS[name].world
    # A process that has imported FSDP1 must not look for it either.
    assert workers.run(world, heap_scans, name) == [[scans, scans]] * world


def frozen_heap():
    model = layouts.fsdp1(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    before = layouts.full_params(model)
    gc.freeze()
    try:
        with pytest.raises(RuntimeError, match="call step"):
            layouts.train(model, optimizer, layouts.by_rank, 1)
    finally:
        gc.unfreeze()
    after = layouts.full_params(model)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    layouts.train(model, optimizer, layouts.by_rank, 1)
    gc.freeze()
    try:
        layouts.train(model, optimizer, layouts.by_rank, 1)
    finally:
        gc.unfreeze()


def test_slices_that_a_frozen_heap_hides_are_refused(workers):
    workers.run(2, frozen_heap)


def finer_rules_of_slices(scaling):
    """What a step and a constructor say of a slice."""
    model = layouts.make_net()
    early = SGDSaI([("up.weight", model.up.weight)], scaling=scaling)
    wrapped = layouts.fsdp1(model)
    late = [p for p in wrapped.parameters() if p.numel() > 0][:1]
    # As trainers do that swap the parameters of an optimizer.
    early.param_groups[0]["params"] = late
    late[0].grad = torch.ones_like(late[0])
    before = late[0].detach().clone()
    with pytest.raises(RuntimeError, match="use fully_shard") as at_step:
        early.step()
    with pytest.raises(RuntimeError, match="use fully_shard") as at_once:
        SGDSaI(late, scaling=scaling)
    assert torch.equal(late[0], before)
    assert not early.state
    return str(at_step.value), str(at_once.value)


@pytest.mark.parametrize("scaling", ["factored", "orthogonal"])
def test_finer_rules_are_refused_for_slices(workers, scaling):
    for step, constructor in workers.run(2, finer_rules_of_slices, scaling):
        sentence = f"scaling must not be {scaling!r} under FullyShardedDataParallel, "
        assert step.startswith(sentence)
        assert "got 'up.weight'" in step
        assert constructor.startswith(sentence)


def flattened_by_a_trainer(scaling):
    """What DeepSpeed and others put in the place of many parameters."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    optimizer = SGDSaI(model.parameters(), scaling=scaling)
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    optimizer.param_groups[0]["params"] = [flat]
    flat.grad = torch.ones_like(flat)
    optimizer.step()


@pytest.mark.parametrize("scaling", ["factored", "orthogonal"])
def test_finer_rules_are_refused_for_what_was_flattened(scaling):
    with pytest.raises((RuntimeError, ValueError), match="must"):
        flattened_by_a_trainer(scaling)


def sliced_into_one_dimension():
    model = layouts.fsdp1(layouts.make_net())
    with pytest.raises(ValueError, match="choose the groups by name"):
        decay_groups(model, 0.1)
    for state_dtype in (torch.int8, "int4"):
        optimizer = SGDSaI(model.parameters(), **OPTIONS, state_dtype=state_dtype)
        with pytest.raises(RuntimeError, match="whose slices have no rows to code"):
            layouts.train(model, optimizer, layouts.by_rank, 1)
        assert not optimizer.state


def test_what_needs_the_dimensions_that_fsdp1_takes_away_is_refused(workers):
    workers.run(2, sliced_into_one_dimension)


def whole_under_fsdp1(strategy):
    model = FullyShardedDataParallel(
        layouts.make_net(),
        use_orig_params=True,
        device_id=layouts.CPU,
        sharding_strategy=strategy,
    )
    groups = decay_groups(model, OPTIONS["weight_decay"])
    assert [len(group["params"]) for group in groups] == [4, 6]
    optimizer = SGDSaI(groups, **OPTIONS, state_dtype=torch.int8)
    layouts.train(model, optimizer, layouts.the_same, 1)
    return get_scales(optimizer, model)


@pytest.mark.parametrize("world", [1, 2])
def test_fsdp1_that_keeps_parameters_whole_scales_like_one_process(workers, world):
    _, expected, _ = layouts.run_alone("gsnr", 1)
    strategy = ShardingStrategy.NO_SHARD if world > 1 else ShardingStrategy.FULL_SHARD
    for found in workers.run(world, whole_under_fsdp1, strategy):
        assert found == pytest.approx(expected, rel=1e-6)


def scales_from_elsewhere(scales):
    model = layouts.fsdp2(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    set_scales(optimizer, model, scales)
    layouts.train(model, optimizer, layouts.by_rank, 3)
    return get_scales(optimizer, model)


def finer_scales_from_elsewhere(name, scales):
    """Scales as they were set, after steps with them, and parameters then."""
    model, optimizer = checkpoints.spread(name, torch.float64, scaling="factored")
    set_scales(optimizer, model, scales)
    at_once = get_scales(optimizer, model)
    layouts.train(model, optimizer, layouts.the_same, 3)
    return at_once, get_scales(optimizer, model), layouts.full_params(model)


@pytest.mark.parametrize("name", ["DDP", "FSDP2", "FSDP2, empty shards", "FSDP2 + TP"])
def test_scales_of_rows_and_columns_serve_on_another_layout(workers, name):
    model = layouts.make_net()
    options = {"scaling": "factored", "calibration_steps": 2}
    optimizer = SGDSaI(model.parameters(), **OPTIONS, **options)
    layouts.train(model, optimizer, layouts.the_same, 2)
    scales = get_scales(optimizer, model)
    twin = layouts.make_net()
    fixed = SGDSaI(twin.parameters(), **OPTIONS, scaling="factored")
    set_scales(fixed, twin, scales)
    layouts.train(twin, fixed, layouts.the_same, 3)
    expected = layouts.full_params(twin)
    for *both, params in workers.run(
        LAYOUTS[name].world, finer_scales_from_elsewhere, name, scales
    ):
        for found in both:
            assert found.keys() == scales.keys()
            differences = map(layouts.scale_difference, found.values(), scales.values())
            assert max(differences) == 0
        for key, value in expected.items():
            torch.testing.assert_close(params[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prefix", ["", "compiled"])
def test_scales_of_one_process_serve_on_shards(workers, prefix):
    model = layouts.make_net()
    if prefix:
        model = torch.compile(model, backend="eager")
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    layouts.train(model, optimizer, layouts.the_same, 1)
    scales = {name: 2 * s for name, s in get_scales(optimizer, model).items()}
    for found in workers.run(2, scales_from_elsewhere, scales):
        assert found == scales


def ddp_names(wrap):
    model = wrap(layouts.make_net())
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    return set(get_scales(optimizer, model))


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_ddp(net):
    return compiled(layouts.ddp(net))


def ddp_of_compiled(net):
    return compiled(layouts.ddp(compiled(net)))


@pytest.mark.parametrize("wrap", [layouts.ddp, compiled_ddp, ddp_of_compiled])
def test_names_are_those_of_the_bare_model_under_ddp(workers, wrap):
    expected = {name for name, _ in layouts.make_net().named_parameters()}
    assert workers.run(1, ddp_names, wrap) == [expected]


# Checkpoints


FLAGS = {
    "sharded": {},
    "full": {"full_state_dict": True},
    "offloaded": {"cpu_offload": True},
    "flattened": {"flatten_optimizer_state_dict": True},
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_continues_bit_for_bit_on_the_same_layout(
    workers, tmp_path, flags, dtype
):
    args = ("FSDP2", tmp_path, dtype, flags)
    saved = workers.run(2, checkpoints.save, *args)
    loaded = workers.run(2, checkpoints.load, *args)
    for (params, scales, _), (found, found_scales, _) in zip(
        saved, loaded, strict=True
    ):
        assert found_scales == scales
        assert all(torch.equal(found[k], v) for k, v in params.items())


def a_rule(moments):
    return moments.numel


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_checkpoint_leaves_a_callable_scaling_to_the_optimizer(
    workers, tmp_path, flags
):
    args = ("FSDP2", tmp_path, torch.float64, flags, 4, {"scaling": a_rule})
    params, scales, _ = workers.run(2, checkpoints.save, *args)[0]
    found, found_scales, _ = workers.run(2, checkpoints.load, *args)[0]
    assert found_scales == scales
    assert all(torch.equal(found[k], v) for k, v in params.items())


@pytest.mark.parametrize("world", [1, 3, 4])
def test_a_checkpoint_of_two_ranks_continues_on_other_numbers(workers, tmp_path, world):
    args = ("FSDP2", tmp_path, torch.float64, {})
    params, scales, _ = workers.run(2, checkpoints.save, *args)[0]
    for found, found_scales, _ in workers.run(world, checkpoints.load, *args):
        assert found_scales == scales
        for key, value in params.items():
            torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scaling", ["factored", "orthogonal"])
@pytest.mark.parametrize("steps", [0, 2, 6])
def test_finer_rules_continue_on_other_numbers_of_ranks(
    workers, tmp_path, scaling, steps
):
    args = ("FSDP2", tmp_path, torch.float64, {}, steps, {"scaling": scaling})
    params, scales, _ = workers.run(2, checkpoints.save, *args)[0]
    for world in (1, 3, 4):
        for found, own_scales, _ in workers.run(world, checkpoints.load, *args):
            for key, value in params.items():
                torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)
            if steps > 0:
                differences = map(
                    layouts.scale_difference, own_scales.values(), scales.values()
                )
                assert max(differences) == 0


def finer_resumes(folder, flags):
    """Whether four checkpoints go on bit for bit."""
    same = []
    for name, steps in (("FSDP2", 2), ("FSDP2", 6)):
        options = {"scaling": "orthogonal", "state_dtype": "int4"}
        place = f"{folder}/{steps}"
        args = (name, place, BF16, flags, steps, options)
        params, *_ = checkpoints.save(*args)
        found, *_ = checkpoints.load(*args)
        same += [torch.equal(found[key], value) for key, value in params.items()]
    return all(same)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_finer_rules_continue_bit_for_bit_from_every_kind_of_checkpoint(
    workers, tmp_path, flags
):
    assert workers.run(2, finer_resumes, tmp_path, flags) == [True, True]


@pytest.mark.parametrize("state_dtype", [torch.int8, "int4"])
def test_roundings_go_on_bit_for_bit_on_other_numbers_of_ranks(
    workers, tmp_path, state_dtype
):
    options = {"make": layouts.make_wide_net, "state_dtype": state_dtype}
    args = ("FSDP2", tmp_path, BF16, {}, 4, options)
    params, scales, _ = workers.run(2, checkpoints.save, *args)[0]
    # The gradients are averaged over powers of two, and so are the same bits.
    for world in (1, 2, 4):
        for found, found_scales, _ in workers.run(world, checkpoints.load, *args):
            assert found_scales == scales
            assert all(torch.equal(found[k], v) for k, v in params.items())


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_checkpoint_before_the_first_step_calibrates_nothing(
    workers, tmp_path, flags
):
    args = ("FSDP2", tmp_path, torch.float64, flags, 0)
    _, before, after = workers.run(2, checkpoints.save, *args)[0]
    assert set(before.values()) == {0.0}
    _, loaded, later = workers.run(2, checkpoints.load, *args)[0]
    assert loaded == before
    assert later == after
    model = layouts.make_net()
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    layouts.train(model, optimizer, layouts.the_same, 1)
    assert after == pytest.approx(get_scales(optimizer, model), rel=1e-6)


@pytest.mark.parametrize(
    "name",
    ["DDP", "HSDP", "TP", "FSDP2 + TP", "FSDP1, device mesh", "FSDP1, hybrid"],
)
def test_every_kind_of_layout_has_checkpoints(workers, tmp_path, name):
    args = (name, tmp_path, torch.float64, {})
    world = LAYOUTS[name].world
    params, scales, _ = workers.run(world, checkpoints.save, *args)[0]
    found, found_scales, _ = workers.run(world, checkpoints.load, *args)[0]
    assert found_scales == scales
    assert all(torch.equal(found[k], v) for k, v in params.items())


# FSDP1's checkpoints leave out what a rank holds nothing of.


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("FSDP1, device mesh", 1),
        ("FSDP1, device mesh", 4),
        ("FSDP1, hybrid", 4),
        ("FSDP2", 2),
        ("DDP", 1),
    ],
)
def test_a_checkpoint_of_fsdp1_continues_on_other_layouts(
    workers, tmp_path, name, world
):
    args = (tmp_path, BF16, {})
    saved = workers.run(2, checkpoints.save, "FSDP1, device mesh", *args)
    params, scales, _ = saved[0]
    for found, found_scales, _ in workers.run(world, checkpoints.load, name, *args):
        assert found_scales == scales
        assert all(torch.equal(found[k], v) for k, v in params.items())


def through_options(**flags):
    def carry(model, optimizer, twin, resumed):
        options = StateDictOptions(**flags)
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        saved = copy.deepcopy(saved)
        if flags.get("broadcast_from_rank0") and torch.distributed.get_rank() > 0:
            saved = {}
        set_optimizer_state_dict(twin, resumed, saved, options=options)

    return carry


def through_fsdp(kind, config, **flags):
    def carry(model, optimizer, twin, resumed):
        for each in (model, twin):
            weights = ShardedStateDictConfig()
            if kind == StateDictType.FULL_STATE_DICT:
                weights = FullStateDictConfig()
            FullyShardedDataParallel.set_state_dict_type(
                each, kind, weights, config(**flags)
            )
        saved = FullyShardedDataParallel.optim_state_dict(model, optimizer)
        saved = FullyShardedDataParallel.optim_state_dict_to_load(twin, resumed, saved)
        resumed.load_state_dict(saved)

    return carry


def through_its_own(model, optimizer, twin, resumed):
    del model, twin
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))


FULL, SHARDED = StateDictType.FULL_STATE_DICT, StateDictType.SHARDED_STATE_DICT
WAYS = [
    *(through_options(**flags) for flags in FLAGS.values()),
    through_options(full_state_dict=True, broadcast_from_rank0=True),
    through_fsdp(FULL, FullOptimStateDictConfig),
    through_fsdp(FULL, FullOptimStateDictConfig, rank0_only=True, offload_to_cpu=True),
    through_fsdp(SHARDED, ShardedOptimStateDictConfig),
    through_its_own,
]


def train_on(model, optimizer, first, last, zeros):
    """Train, the gradients of the first steps being zero."""
    for step, (ids, labels) in enumerate(layouts.batches(last)):
        if step < first:
            continue
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        if step < zeros:
            torch._foreach_zero_([p.grad for p in model.parameters() if p.numel()])
        optimizer.step()


def fsdp1_resumes(name, dtype, zeros, preset, **options):
    """Carry a state over in every way; the run goes on as without an interruption."""
    model, optimizer = checkpoints.spread(name, dtype, **options)
    if preset:
        set_scales(optimizer, model, {"up.weight": 3.0, "gain": 2.0})
    train_on(model, optimizer, 0, 3, zeros)
    weights = [p.detach().clone() for p in model.parameters()]
    twins = [checkpoints.spread(name, dtype, **options) for _ in WAYS]
    for way, (twin, resumed) in zip(WAYS, twins, strict=True):
        way(model, optimizer, twin, resumed)
        with torch.no_grad():
            torch._foreach_copy_(list(twin.parameters()), weights)
        assert get_scales(resumed, twin) == get_scales(optimizer, model)
        # What was loaded can be saved at once.
        way(twin, resumed, twin, resumed)
    train_on(model, optimizer, 3, 6, zeros)
    expected = layouts.full_params(model)
    for twin, resumed in twins:
        train_on(twin, resumed, 3, 6, zeros)
        found = layouts.full_params(twin)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        for param, its in zip(model.parameters(), twin.parameters(), strict=True):
            entry, loaded = optimizer.state[param], resumed.state[its]
            assert loaded.keys() == entry.keys()
            # Where there is nothing to round, the seed stays.
            keys = entry.keys() - ({"rounding_seed"} if its.numel() == 0 else set())
            assert all(torch.equal(loaded[key], entry[key]) for key in keys)


def fsdp1_resumptions(name):
    fsdp1_resumes(name, torch.float32, 0, preset=False)
    fsdp1_resumes(name, BF16, 5, preset=True)
    fsdp1_resumes(name, BF16, 0, preset=False, momentum=0.0)
    fsdp1_resumes(name, torch.float32, 4, preset=True, state_dtype=BF16)
    fsdp1_resumes(name, torch.float32, 2, preset=False, scaling="gsnr_max")


@pytest.mark.parametrize("name", ["FSDP1, original parameters", "FSDP1, hybrid"])
def test_fsdp1_resumes_from_every_kind_of_state_dict(workers, name):
    workers.run(LAYOUTS[name].world, fsdp1_resumptions, name)


class TwoVectors(nn.Module):
    """Of which two ranks hold one each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.arange(4.0))
        self.second = nn.Parameter(torch.arange(4.0))

    def forward(self):
        return (self.first.square() + self.second).sum()


def refused_on_load():
    def make():
        model = layouts.fsdp1(TwoVectors())
        return model, SGDSaI(model.parameters())

    alone = TwoVectors()
    whole = SGDSaI(alone.parameters())
    alone().backward()
    whole.step()
    whole = whole.state_dict()
    del whole["state"][1]
    model, optimizer = make()
    model().backward()
    optimizer.step()
    # Without a part of a block that is another rank's.
    lacking = copy.deepcopy(optimizer.state_dict())
    if torch.distributed.get_rank() == 0:
        del lacking["state"][0]
    sentences = []
    for saved in (whole, lacking):
        _, fresh = make()
        with pytest.raises(ValueError, match="state_dict must") as error:
            fresh.load_state_dict(saved)
        assert not fresh.state
        sentences.append(str(error.value))
    return sentences


def test_what_does_not_fit_one_rank_of_fsdp1_is_refused_on_all(workers):
    first, second = workers.run(2, refused_on_load)
    elsewhere = "state_dict must fit the parameters: another rank has a misfit"
    assert first[0] == elsewhere
    assert "of shape (0,)" in second[0]
    assert "got no scale, momentum_buffer for a part of 4 entries" in first[1]
    assert second[1] == elsewhere


def full_state_from_one_rank():
    model, optimizer = checkpoints.spread("FSDP2", torch.float32, state_dtype=BF16)
    layouts.train(model, optimizer, layouts.the_same, 3)
    offloaded = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, saved = get_state_dict(model, optimizer, options=offloaded)
    twin, resumed = checkpoints.spread("FSDP2", torch.float32, state_dtype=BF16)
    broadcast = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(twin, weights, options=broadcast)
    set_optimizer_state_dict(twin, resumed, saved, options=broadcast)
    for each, its_optimizer in ((model, optimizer), (twin, resumed)):
        layouts.train(each, its_optimizer, layouts.the_same, 2)
    return layouts.full_params(model), layouts.full_params(twin)


def test_a_full_state_that_one_rank_holds_continues_bit_for_bit(workers):
    for params, found in workers.run(2, full_state_from_one_rank):
        assert all(torch.equal(found[k], v) for k, v in params.items())


def state_of_another_layout():
    whole = layouts.make_net()
    optimizer = SGDSaI(whole.parameters(), **OPTIONS)
    layouts.train(whole, optimizer, layouts.the_same, 1)
    model = layouts.fsdp2(layouts.make_net())
    sharded = SGDSaI(model.parameters(), **OPTIONS)
    layouts.train(model, sharded, layouts.by_rank, 1)
    sentences = []
    for each, saved in ((sharded, optimizer), (optimizer, sharded)):
        with pytest.raises(ValueError, match="must fit the parameters") as error:
            each.load_state_dict(saved.state_dict())
        sentences.append(str(error.value))
    return sentences


def test_a_state_that_is_distributed_otherwise_than_its_parameter_is_refused(workers):
    for sentences in workers.run(2, state_of_another_layout):
        assert all("must be distributed over the ranks" in s for s in sentences)


def gsnr_max_resumes(folder):
    args = ("FSDP2", folder, torch.float64, {}, 2, {"scaling": "gsnr_max"})
    return checkpoints.save(*args)[2], checkpoints.load(*args)[2]


def test_gsnr_max_keeps_its_divisor_in_a_checkpoint(workers, tmp_path):
    saved, loaded = workers.run(2, gsnr_max_resumes, tmp_path)[0]
    assert max(loaded.values()) == 1
    assert loaded == saved


def zero_checkpoint():
    model = layouts.ddp(layouts.make_net())
    optimizer = layouts.zero_redundancy(model.parameters(), OPTIONS)
    layouts.train(model, optimizer, layouts.by_rank, 2)
    scales = get_scales(optimizer.optim, model)
    optimizer.consolidate_state_dict(0)
    saved = [optimizer.state_dict() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(saved)
    resumed = layouts.zero_redundancy(model.parameters(), OPTIONS)
    resumed.load_state_dict(saved[0])
    layouts.train(model, resumed, layouts.by_rank, 1)
    return scales == get_scales(resumed.optim, model)


def test_a_zero_redundancy_checkpoint_keeps_the_scales(workers):
    assert workers.run(2, zero_checkpoint) == [True, True]
