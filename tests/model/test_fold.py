"""Folding is exact for every order, shape, stride, dilation and grouping, including the border of zero padding (paper equations 9, 10).

Oracle: the same layers in sequence, in float64. Two tests show that simpler formulas are wrong.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.model.fold import fold_after, fold_concat_before, fold_projection_before, fold_scale_before, fold_shift_before

EXACT = 1e-12


@dataclass
class Case:
    """A convolution in float64, an input, and a generator of constants."""

    conv: nn.Conv2d
    x: Tensor
    generator: torch.Generator

    def constant(self, channels: int) -> Tensor:
        return torch.randn(channels, generator=self.generator, dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn, kernels=(1, 2, 3, 5)) -> Case:
    """Draw convolutions of any kernel, stride, padding, dilation and grouping, with sides that may differ."""
    groups = draw(st.sampled_from((1, 2, 4)))
    c_in, c_out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel = tuple(draw(st.sampled_from(kernels)) for _ in range(2))
    stride, dilation = (tuple(draw(st.integers(1, 2)) for _ in range(2)) for _ in range(2))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())).double()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    sides = [draw(st.integers(d * (k - 1) + 1, 12)) for k, d in zip(kernel, dilation, strict=True)]
    x = torch.randn(2, c_in, *sides, generator=generator, dtype=torch.float64)
    return Case(conv, x, generator)


def per_channel(constant: Tensor) -> Tensor:
    return constant.view(1, -1, 1, 1)


def assert_exact(output: Tensor, expected: Tensor) -> None:
    assert output.shape == expected.shape
    assert (output - expected).abs().max() <= EXACT * max(expected.abs().max().item(), 1.0)


def make_norm(case: Case, channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(case.constant(channels))
        norm.running_var.copy_(case.constant(channels).abs() + 0.1)
    return norm


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


@given(cases())
@torch.no_grad()
def test_a_scale_before_a_convolution_folds_into_it_exactly(case):
    scale = case.constant(case.conv.in_channels)
    assert_exact(fold_scale_before(case.conv, scale)(case.x), case.conv(case.x * per_channel(scale)))


@given(cases())
@torch.no_grad()
def test_a_shift_before_a_convolution_folds_into_it_exactly_including_the_border(case):
    shift = case.constant(case.conv.in_channels)
    assert_exact(fold_shift_before(case.conv, shift)(case.x), case.conv(case.x + per_channel(shift)))


@given(cases(), st.integers(1, 3))
@torch.no_grad()
def test_constant_channels_before_the_features_fold_into_the_convolution_exactly(case, width):
    conv, groups = case.conv, case.conv.groups
    prior = case.constant(groups * width)
    wider = nn.Conv2d(
        conv.in_channels + len(prior), conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups
    ).double()
    channels = []
    for g, features in zip(prior.chunk(groups), case.x.chunk(groups, dim=1), strict=True):
        channels += [per_channel(g).expand(len(features), -1, *features.shape[2:]), features]
    assert_exact(fold_concat_before(wider, prior)(case.x), wider(torch.cat(channels, dim=1)))


@given(cases(), st.integers(1, 5))
@torch.no_grad()
def test_a_projection_before_a_convolution_folds_into_it_exactly_including_the_border(case, channels):
    """Each group of a grouped convolution sees a projection of its own features."""
    groups = case.conv.groups
    z = case.constant(case.conv.in_channels // groups * channels).view(-1, channels)
    x = torch.randn(2, groups * channels, *case.x.shape[2:], generator=case.generator, dtype=torch.float64)
    projected = torch.cat([torch.einsum("rc,bchw->brhw", z, features) for features in x.chunk(groups, dim=1)], dim=1)
    assert_exact(fold_projection_before(case.conv, z)(x), case.conv(projected))


@given(cases(), st.permutations(["norm", "add", "multiply", "add", "multiply"]), st.integers(0, 5))
@torch.no_grad()
def test_linear_steps_after_a_convolution_fold_in_any_order(case, steps, count):
    folded, expected, channels = case.conv, case.conv(case.x), case.conv.out_channels
    for step in steps[:count]:
        constant = case.constant(channels)
        if step == "norm":
            norm = make_norm(case, channels)
            expected, (scale, shift) = norm(expected), scale_and_shift(norm)
        elif step == "add":
            expected, (scale, shift) = expected + per_channel(constant), (torch.ones_like(constant), constant)
        else:
            expected, (scale, shift) = expected * per_channel(constant), (constant, torch.zeros_like(constant))
        folded = fold_after(folded, scale, shift)
    assert_exact(folded(case.x), expected)


@given(cases())
@torch.no_grad()
def test_constants_on_both_sides_of_a_convolution_fold_together(case):
    before, gain, after = (case.constant(n) for n in (case.conv.in_channels, case.conv.in_channels, case.conv.out_channels))
    norm = make_norm(case, case.conv.out_channels)
    expected = norm(case.conv((case.x + per_channel(before)) * per_channel(gain))) * per_channel(after)
    folded = fold_after(fold_after(case.conv, *scale_and_shift(norm)), after, torch.zeros_like(after))
    # The constant nearest to the convolution is folded first.
    folded = fold_shift_before(fold_scale_before(folded, gain), before)
    assert_exact(folded(case.x), expected)


@given(cases())
@settings(max_examples=20)
@torch.no_grad()
def test_folding_does_not_change_the_original_convolution(case):
    before = case.conv(case.x)
    ones = torch.ones(case.conv.in_channels)
    for fold in (fold_scale_before, fold_shift_before):
        fold(case.conv, 2 * ones)
    fold_after(case.conv, torch.zeros(case.conv.out_channels), torch.ones(case.conv.out_channels))
    assert torch.equal(case.conv(case.x), before)


@torch.no_grad()
def test_a_prediction_convolution_folds_by_its_formula():
    """W' = m W and b' = m (b + W a): neither equation 9 nor 10 alone covers the released head."""
    torch.manual_seed(0)
    conv, a, m, x = nn.Conv2d(5, 7, 1).double(), torch.randn(5).double(), torch.randn(7).double(), torch.randn(2, 5, 4, 4).double()
    folded = fold_after(fold_shift_before(conv, a), m, torch.zeros_like(m))
    matrix = conv.weight[:, :, 0, 0]
    torch.testing.assert_close(folded.weight[:, :, 0, 0], m[:, None] * matrix, rtol=0, atol=EXACT)
    torch.testing.assert_close(folded.bias, m * (conv.bias + matrix @ a), rtol=0, atol=EXACT)
    assert_exact(folded(x), conv(x + per_channel(a)) * per_channel(m))


@torch.no_grad()
def test_a_shift_folded_into_the_bias_of_a_padded_convolution_is_wrong_at_the_border_only():
    """Padding holds zeros and not the shift, so a padded convolution needs a map instead of one number per channel."""
    torch.manual_seed(0)
    conv, x, shift = nn.Conv2d(4, 6, 3, padding=1).double(), torch.randn(1, 4, 8, 8).double(), torch.randn(4).double()
    expected = conv(x + per_channel(shift))
    naive = F.conv2d(x, conv.weight, conv.bias + (conv.weight * per_channel(shift)).sum(dim=(1, 2, 3)), padding=1)
    difference = (expected - naive).abs()
    assert difference[..., 1:-1, 1:-1].max() < EXACT
    border = torch.cat((difference[..., 0, :], difference[..., -1, :], difference[..., 0], difference[..., -1]), dim=-1)
    assert border.max() > 0.1
    assert_exact(fold_shift_before(conv, shift)(x), expected)


@torch.no_grad()
def test_a_scale_indexed_without_the_group_is_wrong():
    torch.manual_seed(0)
    conv, x, scale = nn.Conv2d(8, 8, 3, padding=1, groups=4).double(), torch.randn(1, 8, 6, 6).double(), torch.randn(8).double()
    expected = conv(x * per_channel(scale))
    naive = F.conv2d(x, conv.weight * per_channel(scale[:2]), conv.bias, padding=1, groups=4)
    assert (expected - naive).abs().max() > 0.1
    assert_exact(fold_scale_before(conv, scale)(x), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"padding_mode": "reflect", "padding": 1}, "padding_mode: found 'reflect'"), ({"padding": "same"}, "padding: found 'same'")],
)
def test_other_padding_than_a_number_of_zeros_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fold_shift_before(nn.Conv2d(2, 2, 3, **settings), torch.ones(2))
