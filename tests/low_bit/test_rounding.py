import pytest
import torch

from saiopt.low_bit import high_half, low_half, noise_bits, round_stochastically


def seed(value):
    return torch.tensor(value, dtype=torch.int32)


def rounded(values, noise):
    target = torch.empty(values.shape, dtype=torch.bfloat16)
    round_stochastically(target, values, noise)
    return target


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("part", [0.0, 0.125, 0.5, 0.875])
def test_the_chance_of_rounding_up_is_the_part_above_the_lower_neighbour(part, sign):
    lower, spacing = 1.5, 2.0**-7
    values = torch.full((2**16,), sign * (lower + part * spacing))
    every_noise = torch.arange(2**16, dtype=torch.int32)
    up = rounded(values, every_noise).float() == sign * (lower + spacing)
    assert up.float().mean().item() == part


def test_values_that_bfloat16_holds_stay_whatever_the_noise():
    values = torch.randn(2**16).bfloat16().float()
    noise = low_half(noise_bits(0, 2**16, seed(3)))
    assert torch.equal(rounded(values, noise).float(), values)


def test_infinities_and_nan_are_kept():
    values = torch.tensor([float("inf"), -float("inf"), float("nan")])
    stored = rounded(values, torch.full((3,), 65535))
    assert torch.equal(stored[:2].float(), values[:2])
    assert stored[2].isnan()


def test_a_nan_with_a_small_payload_does_not_become_infinity():
    values = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    assert rounded(values, torch.zeros(1)).isnan().all()


def test_noise_is_uniform_in_both_halves_and_every_bit():
    bits = noise_bits(0, 2**18, seed(11))
    for half in (low_half(bits), high_half(bits)):
        counts = torch.bincount(half >> 8, minlength=256).double()
        expected = 2**18 / 256
        chi_squared = ((counts - expected) ** 2 / expected).sum().item()
        assert 150 < chi_squared < 380  # 255 degrees of freedom, about ±5 deviations
        for bit in range(16):
            share = ((half >> bit) & 1).double().mean().item()
            assert share == pytest.approx(0.5, abs=0.005)


def test_noise_of_neighbouring_entries_and_seeds_is_uncorrelated():
    first = low_half(noise_bits(0, 2**18, seed(5))).double()
    for other in (
        low_half(noise_bits(0, 2**18, seed(6))).double(),
        low_half(noise_bits(1, 2**18, seed(5))).double(),
        high_half(noise_bits(0, 2**18, seed(5))).double(),
    ):
        correlation = torch.corrcoef(torch.stack((first, other)))[0, 1].item()
        assert abs(correlation) < 0.01  # 5 deviations of 2^-9


def test_noise_of_a_piece_is_that_of_the_whole():
    whole = noise_bits(0, 1000, seed(9))
    assert torch.equal(noise_bits(300, 200, seed(9)), whole[300:500])


def test_the_mean_over_steps_is_the_value_itself():
    value = torch.full((4096,), 1.0 + 0.3 * 2**-7)
    total = torch.zeros(4096)
    for step in range(64):
        total += rounded(value, low_half(noise_bits(0, 4096, seed(step)))).float()
    error = (total / 64 - value).mean().abs().item()
    assert error < 5 * 2**-7 * (0.3 * 0.7 / (64 * 4096)) ** 0.5
