"""The recipe for parameters whose rows come and go, docs/splatting.md."""

import pytest
import torch
from torch import nn
from written import ROOT, chains

from saiopt import SGDSaI

NUM, WIDTH = 400, 16
KEPT = torch.cat([torch.arange(3, 200), torch.arange(230, NUM)])
# Rows 0 to 2 and 30 others are pruned, two are new, and one continues row 5 too.
SOURCE = torch.cat([KEPT, torch.tensor([-1, -1, 5])])


@pytest.fixture(scope="module")
def change_rows():
    names = {}
    exec(chains(ROOT / "docs" / "splatting.md")[0].blocks[0], names)
    return names["change_rows"]


def train(optimizer, params, steps, rows=slice(None)):
    """Step along gradients that are a row's own, and 0 for rows that came later."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for param in params:
            whole = torch.randn(NUM, *param.shape[1:], generator=draw)
            param.grad = torch.zeros_like(param)
            param.grad[: len(whole[rows])] = whole[rows]
        optimizer.step()


def make(scaling, state_dtype):
    params = [nn.Parameter(torch.randn(NUM, WIDTH)), nn.Parameter(torch.randn(NUM))]
    groups = [{"params": [p], "name": n} for p, n in zip(params, "ab", strict=True)]
    options = {"scaling": scaling, "state_dtype": state_dtype, "weight_decay": 0.0}
    return params, SGDSaI(groups, lr=0.01, **options)


def changed_from(params):
    fresh = torch.zeros(2, WIDTH), torch.zeros(2)
    return {
        p: nn.Parameter(torch.cat([p.detach()[KEPT], new, p.detach()[5:6]]))
        for p, new in zip(params, fresh, strict=True)
    }


@pytest.mark.parametrize("scaling", ["gsnr", "sqrt_numel", "none"])
def test_kept_rows_go_on_as_if_nothing_had_happened(scaling, change_rows):
    params, optimizer = make(scaling, None)
    train(optimizer, params, range(3))
    changed = changed_from(params)
    before = {p: p.detach().clone() for p in changed.values()}
    change_rows(optimizer, changed, SOURCE)
    grown = list(changed.values())
    # The optimizer has let go of the old ones: go on with their twins.
    others, other = make(scaling, None)
    for other_p, p in zip(others, params, strict=True):
        other_p.data.copy_(p.detach())
    for i, (p, q) in enumerate(zip(grown, others, strict=True)):
        entry = optimizer.state[p]
        whole = torch.zeros_like(q)
        whole[KEPT] = entry["momentum_buffer"][: len(KEPT)]
        other.state[q] = {"scale": entry["scale"].clone(), "momentum_buffer": whole}
        assert optimizer.param_groups[i]["params"] == [p]
    train(optimizer, grown, range(3, 6), KEPT)
    train(other, others, range(3, 6))
    for p, q in zip(grown, others, strict=True):
        assert torch.equal(p[: len(KEPT)], q[KEPT])
        new = slice(len(KEPT), len(KEPT) + 2)
        assert torch.equal(p[new], before[p][new])
        assert not torch.equal(p[-1], before[p][-1])


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8", "int4"])
def test_momentum_in_few_bits_keeps_its_rows(state_dtype, change_rows):
    params, optimizer = make("gsnr", state_dtype)
    train(optimizer, params, range(3))
    held = as_float32(optimizer, params)[0]
    changed = changed_from(params)
    change_rows(optimizer, changed, SOURCE)
    grown = list(changed.values())
    kept = as_float32(optimizer, grown)[0]
    tolerance = {"bfloat16": 0.0, "int8": 0.03, "int4": 0.5}[state_dtype]
    assert (kept[: len(KEPT)] - held[KEPT]).abs().max() <= tolerance
    assert (kept[-1] - held[5]).abs().max() <= tolerance
    assert optimizer.param_groups[0]["state_dtype"] == state_dtype


def as_float32(optimizer, params):
    """Return the momenta of a copy that keeps them in float32."""
    groups = [{"params": [p], "name": n} for p, n in zip(params, "ab", strict=True)]
    copy = SGDSaI(groups, state_dtype="float32")
    copy.load_state_dict(optimizer.state_dict())
    return [copy.state[p]["momentum_buffer"] for p in params]


@pytest.mark.parametrize("steps", [3, 101], ids=["while measuring", "afterwards"])
def test_scales_of_rows_go_with_them(steps, change_rows):
    params, optimizer = make("factored", None)
    train(optimizer, params, range(steps))
    before = dict(optimizer.state[params[0]])
    changed = changed_from(params)
    change_rows(optimizer, changed, SOURCE)
    entry = optimizer.state[changed[params[0]]]
    assert torch.equal(entry["row_scale"][: len(KEPT)], before["row_scale"][KEPT])
    assert entry["row_scale"][len(KEPT) :].tolist()[:2] == [1, 1]
    for key in ("scale", "column_scale", "column_share", "num_measured"):
        assert torch.equal(entry[key], before[key])
    sums, old = (e["block_sum"] * e["row_share"] for e in (entry, before))
    torch.testing.assert_close(sums[: len(KEPT)], old[KEPT])
    torch.testing.assert_close(entry["row_share"].sum(), torch.tensor(1.0))
    train(optimizer, list(changed.values()), range(3), KEPT)
    assert all(p.isfinite().all() for p in changed.values())


def test_rows_may_change_before_the_first_step(change_rows):
    params, optimizer = make("gsnr", "int4")
    changed = changed_from(params)
    change_rows(optimizer, changed, SOURCE)
    train(optimizer, list(changed.values()), range(2), KEPT)
    assert set(optimizer.state) == set(changed.values())
