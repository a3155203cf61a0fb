"""The residual generator: no mosaics and no hard contours by its construction."""

import pytest
import torch

from udl_dist.methods.networks.gan_resnet import GrowingBlock, NormedLeaky


@pytest.mark.parametrize(("stride", "side"), [((2, 2), (12, 12)), ((2, 1), (11, 6))])
def test_a_shortcut_enlarges_without_copies_of_pixels(
    stride: tuple[int, int], side: tuple[int, int]
) -> None:
    """What else a block adds is zero at first."""
    block = GrowingBlock(2, 2, stride, side)
    ramp = torch.arange(6.0)[:, None].expand(5, 2, 6, 6)
    large = block(ramp)
    assert large.shape == (5, 2, *side)
    # Copies have steps of 0 and 1 by turns. The edges repeat their pixel.
    torch.testing.assert_close(
        large.diff(dim=2)[:, :, 1:-1], torch.tensor(0.5).expand(5, 2, side[0] - 3, side[1])
    )


def test_activations_keep_how_strong_a_feature_is_over_an_image() -> None:
    """A feature that fades to zero and back would be +1 or -1, were each pixel normalised."""
    ramp = torch.linspace(-1, 1, 9).expand(2, 4, 9, 9)
    found = NormedLeaky()(ramp.clone())
    positive = found[0, 0, 0, 5:]
    assert positive / positive[0] == pytest.approx([1, 2, 3, 4])
    # Of each image alone: twice the values, and other images beside it, change nothing.
    both = NormedLeaky()(torch.cat([ramp[:1] * 2, torch.randn(1, 4, 9, 9)]))
    torch.testing.assert_close(both[:1], found[:1], rtol=1e-3, atol=1e-4)
