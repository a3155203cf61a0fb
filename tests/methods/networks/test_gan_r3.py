"""The networks of R3GAN: the sizes published for them, their start and their resampling."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from udl_dist.methods.networks.gan_r3 import (
    Basis,
    Block,
    Downsample,
    R3Discriminator,
    R3Generator,
    Upsample,
)

ANCHORS = {  # widths from 4 pixels on: side, parameters of generator and discriminator
    "CIFAR-10": ((768,) * 4, 32, 20_732_160, 20_683_776),
    "FFHQ-64": ((*[768] * 4, 384), 64, 22_429_824, 22_381_440),
    "FFHQ-256": ((*[768] * 4, 384, 192, 96), 256, 23_057_952, 23_009_568),
}


@pytest.mark.parametrize("name", ANCHORS)
def test_published_networks_have_as_many_parameters(name: str) -> None:
    """Counted on the authors' code, without classes."""
    widths, side, *counts = ANCHORS[name]
    with torch.device("meta"):
        networks = (
            R3Generator(64, (3, side, side), 1, widths),
            R3Discriminator((3, side, side), 1, widths),
        )
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == counts


def test_by_width_channels_double_up_to_eight_times() -> None:
    by_width = R3Generator(5, (3, 256, 256), 8, ())
    widths = [layer.last.out_channels for layer in by_width if isinstance(layer, Block)]
    assert widths[::2] == [64, 64, 64, 64, 32, 16, 8]
    given = R3Generator(5, (3, 256, 256), 1, (64, 64, 64, 64, 32, 16, 8))
    shapes = [[p.shape for p in network.parameters()] for network in (by_width, given)]
    assert shapes[0] == shapes[1]


def test_a_block_is_nothing_at_first_and_its_layers_have_fixup_s_gain() -> None:
    torch.manual_seed(0)
    network = R3Discriminator((3, 32, 32), 64, (64, 64, 64, 64))
    blocks = [layer for layer in network if isinstance(layer, Block)]
    assert len(blocks) == 8
    images = torch.randn(2, 64, 8, 8)
    assert torch.equal(blocks[0](images), images)
    gain = math.sqrt(2 / 1.04) * 8**-0.25
    for weight, fan in ((blocks[0].first.weight, 64), (blocks[0].grouped.weight, 9 * 16)):
        assert float(weight.detach().std()) == pytest.approx(gain / math.sqrt(fan), rel=0.05)
    assert blocks[0].grouped.groups == 128 // 16


def test_the_networks_have_neither_norms_nor_biases_outside_blocks() -> None:
    for network in (R3Generator(6, (3, 16, 16), 8, ()), R3Discriminator((3, 16, 16), 8, ())):
        named = [name for name, _ in network.named_parameters() if "bias" in name]
        assert all("first_bias" in name or "grouped_bias" in name for name in named)
        assert not any(isinstance(m, nn.GroupNorm | nn.BatchNorm2d) for m in network.modules())


def test_a_constant_stays_the_same_inside_and_a_grid_of_dots_vanishes() -> None:
    ones = torch.ones(1, 2, 8, 8)
    large, small = Upsample((2, 2), (16, 16))(ones), Downsample((2, 2))(ones)
    torch.testing.assert_close(large[..., 1:-1, 1:-1], torch.ones(1, 2, 14, 14))
    torch.testing.assert_close(small[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    dots = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    torch.testing.assert_close(
        Downsample((2, 2))(dots)[..., 1:-1, 1:-1], torch.zeros(1, 1, 2, 2), rtol=0, atol=1e-6
    )


def test_resampling_is_linear_interpolation_and_its_transpose() -> None:
    images = torch.randn(2, 3, 6, 4)
    large = Upsample((2, 2), (12, 8))(images)
    # [1, 2, 1] on doubled pixels: three quarters of the nearer and one of the farther.
    torch.testing.assert_close(
        large[..., 2:-2, 2:-2],
        functional.interpolate(images, scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2],
    )
    other = torch.randn(2, 3, 12, 8)
    there, back = (large * other).sum(), (images * Downsample((2, 2))(other)).sum()
    torch.testing.assert_close(there, 4 * back, rtol=1e-4, atol=1e-4)


def test_a_side_that_keeps_its_size_is_not_filtered() -> None:
    images = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(Upsample((1, 1), (5, 7))(images), images)
    assert Downsample((2, 1))(images).shape == (2, 3, 3, 7)
    assert Upsample((2, 1), (9, 7))(images).shape == (2, 3, 9, 7)


def test_a_basis_scales_the_map_of_each_channel() -> None:
    basis, inputs = Basis(3, 4, (4, 5)), torch.randn(2, 3)
    scales = inputs @ basis.scales.weight.T
    torch.testing.assert_close(basis(inputs)[1, 2], scales[1, 2] * basis.maps[2])
