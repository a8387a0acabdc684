import math

import pytest
import torch

from saiopt.scaling import gsnr
from saiopt.scaling.moments import Moments, measure, merge


def exact_moments(grad):
    values = grad.double().flatten().tolist()
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_every_dtype_is_measured_as_exactly_as_its_float64_copy(dtype):
    grad = (torch.randn(37, 11) * 3 + 1).to(dtype)
    mean, squared = exact_moments(grad)
    moments = measure([grad])
    assert moments.numel.tolist() == [407]
    assert moments.mean.item() == pytest.approx(mean, rel=1e-13)
    assert moments.squared_deviations.item() == pytest.approx(squared, rel=1e-12)


def test_a_mean_of_a_thousand_deviations_loses_nothing_to_cancellation():
    grad = 1000 + torch.randn(4096, dtype=torch.float64)
    _, squared = exact_moments(grad)
    assert measure([grad]).squared_deviations.item() == pytest.approx(squared, rel=1e-9)


def test_chunks_merge_to_the_moments_of_the_whole():
    grad = torch.randn(2**18 + 12345) + torch.linspace(-3, 3, 2**18 + 12345)
    moments = measure([grad])
    expected = torch.var_mean(grad.double(), correction=0)
    assert moments.squared_deviations.item() == pytest.approx(
        expected[0].item() * grad.numel(), rel=1e-12
    )
    assert moments.mean.item() == pytest.approx(expected[1].item(), rel=1e-12)


def test_many_blocks_are_measured_like_each_alone():
    grads = [torch.randn(n) + n for n in (1, 2, 3, 50)]
    together = measure(grads)
    for i, grad in enumerate(grads):
        alone = measure([grad])
        assert together.mean[i] == alone.mean[0]
        assert together.squared_deviations[i] == alone.squared_deviations[0]


@pytest.mark.parametrize(
    "layout",
    [
        lambda g: g.t(),
        lambda g: g[:, ::2],
        lambda g: g.view(4, 3, 5, 2).contiguous(memory_format=torch.channels_last),
        lambda g: torch.ones(()).expand(7, 3),
        lambda g: g[0, 0],
    ],
    ids=["transposed", "strided", "channels_last", "expanded", "0-d"],
)
def test_strides_do_not_change_the_moments(layout):
    grad = layout(torch.randn(12, 10))
    mean, squared = exact_moments(grad)
    moments = measure([grad])
    assert moments.mean.item() == pytest.approx(mean, rel=1e-12)
    assert moments.squared_deviations.item() == pytest.approx(squared, abs=1e-12)


def test_merging_empty_parts_changes_nothing():
    parts = Moments(
        numel=torch.tensor([3.0, 0.0, 2.0], dtype=torch.float64),
        mean=torch.tensor([2.0, 0.0, 7.0], dtype=torch.float64),
        squared_deviations=torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64),
        spacing=torch.zeros(()),
    )
    merged = merge(torch.tensor([0, 0, 0]), parts, torch.zeros(2, dtype=torch.float64))
    assert merged.numel.tolist() == [5, 0]
    assert merged.mean.tolist() == [4, 0]
    # 2 + 0.5 + 3 (2-4)² + 2 (7-4)²
    assert merged.squared_deviations.tolist() == [32.5, 0]


def test_a_float16_norm_above_its_largest_number_is_finite():
    grad = torch.full((100,), 6e4, dtype=torch.float16)
    grad[::2] = -6e4
    assert measure([grad]).norm.item() == pytest.approx(6e4 * 10, rel=1e-3)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_squares_outside_float32_do_not_spoil_the_ratio(magnitude):
    grad = torch.randn(1000)
    ratio = lambda m: (m.norm / m.std).item()  # noqa: E731
    assert ratio(measure([grad * magnitude])) == pytest.approx(
        ratio(measure([grad])), rel=1e-6
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_makes_a_block_unusable(bad):
    grad = torch.ones(5)
    grad[3] = bad
    assert measure([grad, torch.ones(5)]).usable.tolist() == [False, True]


def test_only_an_all_zero_gradient_is_unusable():
    one = torch.zeros(10)
    one[7] = 1e-40
    assert measure([torch.zeros(10), one]).usable.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_entries_are_degenerate_also_up_to_rounding(dtype):
    grad = torch.full((1000,), 0.3, dtype=torch.float64)
    grad *= 1 + torch.finfo(dtype).eps * torch.randn(1000, dtype=torch.float64)
    assert measure([grad.to(dtype)]).degenerate.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_entries_that_differ_by_more_than_rounding_are_not_degenerate(dtype):
    grad = torch.full((1000,), 0.3, dtype=torch.float64)
    grad *= 1 + 40 * torch.finfo(dtype).eps * torch.randn(1000, dtype=torch.float64)
    assert not measure([grad.to(dtype)]).degenerate.any()


@pytest.mark.parametrize(
    ("dtype", "border"),
    [(torch.float64, 16), (torch.float32, 16), (torch.bfloat16, 2), (torch.float16, 2)],
)
def test_the_border_of_the_degenerate_is_so_many_spacings_of_the_mean(dtype, border):
    for spacings, is_degenerate in ((border - 1, True), (border + 1, False)):
        # Half of the entries lie at the mean, the others as far above as below.
        step = spacings * math.sqrt(2) * torch.finfo(dtype).eps
        grad = torch.tensor([1.0, 1.0 + step, 1.0, 1.0 - step], dtype=torch.float64)
        moments = measure([grad.repeat(5000)])
        moments = Moments(
            moments.numel,
            moments.mean,
            moments.squared_deviations,
            torch.tensor([torch.finfo(dtype).eps], dtype=torch.float64),
        )
        assert moments.std.item() == pytest.approx(
            spacings * torch.finfo(dtype).eps, rel=1e-3
        )
        assert moments.degenerate.item() is is_degenerate


def test_a_bfloat16_bias_with_a_gsnr_of_36_gets_it():
    exact = torch.tensor([0.92, 1.0, 1.06, 0.96, 1.05])
    stored = exact.bfloat16()
    expected = (stored.double().norm() / stored.double().std()).item()
    assert expected == pytest.approx(36, abs=5)
    value = gsnr(measure([stored]), eps=0.0).item()
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_that_are_equal_but_for_their_order_are_degenerate_in_16_bits(dtype):
    terms = torch.randn(300, 500).abs()
    sums = torch.stack(
        [row[torch.randperm(500)].sum() for row in terms[:1].repeat(300, 1)]
    )
    assert measure([sums.to(dtype), sums]).degenerate.all()


def test_selecting_keeps_the_rows_in_order():
    moments = measure([torch.ones(n) * n for n in (2, 3, 4)])
    chosen = moments.select(torch.tensor([True, False, True]))
    assert chosen.numel.tolist() == [2, 4]
    assert chosen.mean.tolist() == [2, 4]
