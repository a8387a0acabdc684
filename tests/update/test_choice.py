import pytest
import torch

from saiopt import SGDSaI
from saiopt.update import choose, cpu, foreach, library, reference, two_pass


def param(dtype=torch.float32, device="cpu"):
    return torch.nn.Parameter(torch.ones(3, dtype=dtype, device=device))


@pytest.fixture(params=["with a kernel", "without a kernel"])
def kernel(request, monkeypatch):
    found = object() if request.param == "with a kernel" else "nothing works"
    monkeypatch.setattr(library, "load", lambda: found)
    return found


def test_what_is_asked_for_is_chosen(kernel):
    for foreach_flag, expected in ((True, foreach.update), (False, reference.update)):
        for fused in (None, False):
            chosen = choose(param(), foreach=foreach_flag, fused=fused)
            assert chosen.update is expected
    assert choose(param(), foreach=None, fused=False).update is reference.update


def test_the_kernel_is_chosen_where_there_is_one(kernel):
    expected = two_pass.update if isinstance(kernel, str) else cpu.update
    assert choose(param(), foreach=None, fused=None).update is expected


def test_a_kernel_that_is_asked_for_and_missing_is_refused(kernel):
    if isinstance(kernel, str):
        with pytest.raises(RuntimeError, match="where nothing works, got True"):
            choose(param(), foreach=None, fused=True)
    else:
        assert choose(param(), foreach=None, fused=True).update is cpu.update


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (param(torch.float16), "a parameter is torch.float16"),
        (param(device="meta"), "a parameter is on meta"),
    ],
)
def test_parameters_that_no_kernel_knows_are_named(kernel, refused, reason):
    with pytest.raises(RuntimeError, match=f"False or None where {reason}, got True"):
        choose(refused, foreach=None, fused=True)
    choose(refused, foreach=None, fused=None)


def test_a_refused_execution_changes_nothing(kernel):
    half, weights = param(torch.float16), param()
    half.grad, weights.grad = torch.ones(3).half(), torch.ones(3)
    groups = [{"params": [weights]}, {"params": [half], "fused": True}]
    optimizer = SGDSaI(groups, foreach=False)
    with pytest.raises(RuntimeError, match="fused must be False or None"):
        optimizer.step()
    assert torch.equal(weights, torch.ones(3))
    assert not optimizer.state


def test_an_empty_group_has_no_say(kernel):
    weights = param()
    weights.grad = torch.ones(3)
    optimizer = SGDSaI([{"params": [weights]}, {"params": [], "fused": True}])
    optimizer.param_groups[0]["foreach"] = False
    optimizer.step()
    assert not torch.equal(weights, torch.ones(3))
