import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from saiopt import SGDSaI

SHAPES = {
    "rows": ((101, 77), [Shard(0)]),
    "fewer rows than ranks": ((1, 5000), [Shard(0)]),
    "columns of whole groups": ((70, 128), [Shard(1)]),
    "columns that cut groups": ((70, 96), [Shard(1)]),
    "channels": ((64, 6, 4, 4), [Shard(0)]),
    "replicated": ((64, 80), [Replicate()]),
}


def trained(shape, state_dtype, mesh=None, placements=None):
    """The parameter and its state after three steps without stochastic rounding."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for _ in range(4)]
    if mesh is not None:
        values = [distribute_tensor(v, mesh, placements) for v in values]
    param = nn.Parameter(values[0])
    optimizer = SGDSaI(
        [param], 1e-2, state_dtype=state_dtype, stochastic_rounding=False
    )
    for grad in values[1:]:
        param.grad = grad
        optimizer.step()
    return param.detach(), optimizer.state[param]


def shards(name, state_dtype):
    """Whether state and parameter are those of one process, and where they live."""
    shape, placements = SHAPES[name]
    mesh = init_device_mesh("cpu", (2,))
    param, state = trained(shape, state_dtype, mesh, placements)
    whole, expected = trained(shape, state_dtype)
    coded = "momentum_scale" in state
    if not coded:
        whole, expected = trained(shape, torch.float32)
    for key, value in state.items():
        if isinstance(value, DTensor):
            assert value.placements == param.placements
            full = value.full_tensor()
            assert full.shape == expected[key].shape
            assert torch.equal(full, expected[key])
    torch.testing.assert_close(param.full_tensor(), whole, rtol=1e-6, atol=1e-7)
    return coded


@pytest.mark.parametrize("state_dtype", [torch.int8, "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_coded_momentum_shards_like_its_parameter(workers, name, state_dtype):
    coded = name != "columns that cut groups"
    assert workers.run(2, shards, name, state_dtype) == [coded, coded]
