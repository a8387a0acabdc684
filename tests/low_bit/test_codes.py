import pytest
import torch

from saiopt.low_bit import Code, dequantize, noise_bits, quantize, using

CODES = [Code(8), Code(4), Code(8, companded=True), Code(4, companded=True)]
EVERY_CODE = pytest.mark.parametrize("code", CODES, ids=str)
EVERY_LINEAR_CODE = pytest.mark.parametrize("code", CODES[:2], ids=str)


def stored_as(code):
    return torch.int8 if code.bits == 8 else torch.uint8


def there_and_back(values, code, noise=None):
    with using(code):
        buffer, scale = quantize(values, stored_as(code), noise)
        return dequantize(buffer, scale, values.shape[1], noise), scale.float()


def levels(code):
    codes = torch.arange(code.max_code + 1, dtype=torch.float64)
    return codes.square() if code.companded else codes


def random_noise(values, seed=5):
    bits = noise_bits(0, values.numel(), torch.tensor(seed, dtype=torch.int32))
    return (bits & 0xFFFF).view(values.shape)


@EVERY_CODE
@pytest.mark.parametrize("cols", [1, 2, 31, 32, 33, 77])
def test_the_error_is_at_most_half_the_step_between_two_codes(code, cols):
    values = torch.randn(50, cols)
    result, scale = there_and_back(values, code)
    grid = levels(code) * scale.double().repeat_interleave(32, 1)[:, :cols, None]
    nearest = (values.double().abs()[..., None] - grid).abs().amin(dim=-1)
    error = (result.double().abs() - values.double().abs()).abs()
    assert (error <= nearest * (1 + 1e-4) + 1e-6 * grid[..., -1]).all()
    assert (result * values >= 0).all()


@EVERY_CODE
def test_values_on_the_grid_are_kept(code):
    signs = torch.tensor([1.0, -1.0]).repeat(16)
    row = levels(code).float()[torch.randint(code.max_code + 1, (20, 32))] * signs
    row[:, 0] = code.max_level
    noises = [None]
    if code.companded:
        noises += [random_noise(row), torch.full_like(row, 65535)]
    for noise in noises:
        result, scale = there_and_back(row * 0.25, code, noise)
        assert torch.equal(scale, torch.full_like(scale, 0.25))
        torch.testing.assert_close(result, row * 0.25, rtol=0, atol=0)


@EVERY_CODE
def test_stochastic_rounding_is_right_in_the_mean(code):
    values = torch.randn(1, 32)
    every_noise = torch.arange(0, 2**16, 16, dtype=torch.int32)[:, None].expand(-1, 32)
    many = values.expand(2**12, 32)
    result, scale = there_and_back(many, code, every_noise)
    bound = 2 * code.max_code if code.companded else 1
    error = (result.double().mean(0) - values.double()[0]).abs()
    assert (error <= 2**-11 * bound * scale[0].abs()).all()


@EVERY_LINEAR_CODE
def test_the_error_of_dithered_codes_is_uniform_whatever_the_value(code):
    values = torch.linspace(-1, 1, 32)[None]
    every_noise = torch.arange(0, 2**16, 16, dtype=torch.int32)[:, None].expand(-1, 32)
    result, scale = there_and_back(values.expand(2**12, 32), code, every_noise)
    error = (result - values).double() / scale[0, 0].abs()
    # Half a code and a step of the noise.
    assert error.abs().max() <= 0.5002
    torch.testing.assert_close(
        error.square().mean(0), torch.full((32,), 1 / 12).double(), rtol=1e-3, atol=0
    )


@EVERY_LINEAR_CODE
def test_codes_say_themselves_whether_they_are_dithered(code):
    values = torch.randn(20, 77)
    noise = random_noise(values)
    with using(code):
        plain = quantize(values, stored_as(code), None)
        dithered = quantize(values, stored_as(code), noise)
        assert torch.equal(dequantize(*plain, 77, noise), dequantize(*plain, 77))
        found = dequantize(*dithered, 77, noise)
        # Without the noise the error is that of half a code more.
        means = dequantize(*dithered, 77)
    assert (plain[1] > 0).all()
    assert (dithered[1] < 0).all()
    step = dithered[1].float().abs().repeat_interleave(32, 1)[:, :77]
    assert ((found - values).abs() <= 0.5002 * step).all()
    assert ((means - found).abs() <= 0.5002 * step).all()


@EVERY_LINEAR_CODE
def test_codes_of_zero_stand_for_zero_so_that_they_can_be_cleared(code):
    values = torch.randn(3, 64)
    values[0, ::3] = 0
    noise = random_noise(values)
    with using(code):
        buffer, scale = quantize(values, stored_as(code), noise)
        found = dequantize(buffer, scale, 64, noise)
        assert torch.equal(found == 0, values == 0)
        assert not dequantize(buffer.zero_(), scale, 64, noise).any()


@EVERY_CODE
def test_a_changed_sign_changes_only_the_sign(code):
    values = torch.randn(40, 77)
    noises = [None, random_noise(values)] if code.companded else [None]
    for noise in noises:
        up, _ = there_and_back(values, code, noise)
        down, _ = there_and_back(-values, code, noise)
        assert torch.equal(up, -down)


@EVERY_CODE
@pytest.mark.parametrize("magnitude", [1e-30, 1e-8, 1.0, 1e30])
def test_the_relative_error_does_not_depend_on_the_magnitude(code, magnitude):
    values = torch.randn(40, 64).double()
    result, _ = there_and_back((values * magnitude).float(), code)
    largest = values.view(40, 2, 32).abs().amax(2).repeat_interleave(32, 1)
    error = (result.double() / magnitude - values).abs() / largest
    gap = (levels(code).diff() / code.max_level).max()
    assert error.max() <= gap / 2 * 1.01


@EVERY_CODE
@pytest.mark.parametrize("noisy", [False, True])
def test_zeros_stay_zeros(code, noisy):
    values = torch.zeros(3, 40)
    values[:, 32:] = 1e-3
    noise = torch.full_like(values, 65535) if noisy else None
    result, _ = there_and_back(values, code, noise)
    assert not result[:, :32].any()
    assert result[:, 32:].all()


@EVERY_CODE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(code, bad):
    values = torch.randn(2, 64)
    values[1, 40] = bad
    result, _ = there_and_back(values, code)
    assert result[1, 32:].isnan().all()
    assert result[0].isfinite().all()
    assert result[1, :32].isfinite().all()


@EVERY_CODE
def test_an_outlier_costs_only_its_own_group(code):
    values = torch.randn(1, 96)
    calm, _ = there_and_back(values, code)
    values[0, 50] = 1e6
    result, _ = there_and_back(values, code)
    assert torch.equal(result[0, :32], calm[0, :32])
    assert torch.equal(result[0, 64:], calm[0, 64:])


def test_two_codes_of_4_bits_share_a_byte_and_an_odd_row_ends_in_half_of_one():
    values = torch.tensor([[7.0, -7.0, 3.0], [0.0, 1.0, -1.0]])
    buffer, scale = quantize(values, torch.uint8, None)
    assert buffer.tolist() == [[0x97, 0x03], [0x70, 0x09]]
    assert scale.shape == (2, 1)


def test_square_root_codes_resolve_small_values_better():
    values = torch.cat([torch.full((1, 31), 1e-3), torch.ones(1, 1)], dim=1)
    errors = [(there_and_back(values, c)[0] - values)[0, 0].abs() for c in CODES]
    assert errors[2] < errors[0] / 10


def test_other_group_sizes_have_their_own_scales():
    values = torch.randn(4, 100)
    with using(Code(4, group_size=16)):
        buffer, scale = quantize(values, torch.uint8, None)
        assert scale.shape == (4, 7)
        assert dequantize(buffer, scale, 100).shape == (4, 100)
    assert quantize(values, torch.uint8, None)[1].shape == (4, 4)
