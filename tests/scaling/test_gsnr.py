import math

import oracle
import pytest
import torch

from saiopt.scaling import gsnr, scales
from saiopt.scaling.moments import measure


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("numel", [2, 3, 100, 10007])
def test_gsnr_has_its_closed_form(numel, ratio):
    deviations = torch.linspace(-1, 1, numel, dtype=torch.float64)
    deviations /= deviations.std(correction=0)
    value = gsnr(measure([deviations + ratio]), eps=0.0).item()
    assert value == pytest.approx(math.sqrt((numel - 1) * (1 + ratio**2)), rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.5])
def test_gsnr_equals_the_published_formula(eps):
    grad = torch.randn(64, 7) + 0.2
    value = gsnr(measure([grad]), eps).item()
    assert value == pytest.approx(oracle.gsnr(grad, eps), rel=1e-12)


def test_gsnr_of_a_block_does_not_depend_on_the_gradients_size():
    grad = torch.randn(500)
    small, large = gsnr(measure([grad * 2**-40, grad * 2**40]), eps=0.0).tolist()
    assert small == pytest.approx(large, rel=1e-12)


@pytest.mark.parametrize("numel", [1, 9])
def test_degenerate_blocks_scale_by_the_root_of_their_size(numel):
    value = gsnr(measure([torch.full((numel,), 0.7)]), eps=1e-8).item()
    assert value == math.sqrt(numel)


def test_named_rules_give_their_scales():
    moments = measure([torch.randn(16), torch.randn(25)])
    assert scales("sqrt_numel", moments, 0.0).tolist() == [4, 5]
    assert scales("none", moments, 0.0).tolist() == [1, 1]
    assert torch.equal(scales("gsnr_max", moments, 0.1), gsnr(moments, 0.1))


def test_a_callable_sees_the_moments_of_all_blocks():
    moments = measure([torch.randn(16), torch.randn(25)])
    assert scales(lambda m: m.numel / 2, moments, 0.0).tolist() == [8, 12.5]


def test_a_callable_must_return_one_scale_per_block():
    moments = measure([torch.randn(16), torch.randn(25)])
    with pytest.raises(ValueError, match="one scale per block"):
        scales(lambda m: m.numel.sum(), moments, 0.0)
