"""Generators and discriminators of plain layers: the article's, and a DCGAN's.

Discriminators are chains that end in a linear layer to one number (see `Discriminator`).
"""

from __future__ import annotations

import math

from torch import nn

from udl_dist.methods.networks.layers import (
    GAINS,
    Pair,
    activation,
    conv,
    conv_transpose,
    halvings,
    kernel,
    linear,
    norm,
)

LEAKY = GAINS["leaky_relu"]
# The gain of a generator's last layer. One that starts with nearly equal images gets the same
# gradient for all of them: it shifts them together and never leaves that one image.
DIVERSE = 1.0
LEAST = 4  # pixels that are left of a side
MOST = 4  # times the first width are the most channels of a DCGAN


class ArticleGenerator(nn.Sequential):
    """[N, latent_dim] -> [N, C, H, W], unbounded, for images of any size.

    The article goes from 4×4×256 by two doublings to 16 pixels, which can never make 28. Here the
    image is halved, rounding up, as long as 4 pixels or more are left (28, 14, 7, 4), and
    transposed convolutions with half the channels each go the same way back; a size that does not
    come down to 4 starts from 5, 6 or 7.
    """

    def __init__(self, latent_dim: int, shape: tuple[int, int, int]) -> None:
        sides = [(shape[1], shape[2])]
        while min((side + 1) // 2 for side in sides[-1]) >= 4:
            sides = halvings(sides[0], len(sides))
        start = (256, *sides[-1])
        # Normalised feature by feature: over channels, a pattern that all images share would hide
        # what sets them apart.
        layers = [
            *_dense(latent_dim, 256),
            *_dense(256, 512),
            *_dense(512, 1024),
            *_dense(1024, math.prod(start)),
            nn.Unflatten(1, start),
        ]
        # Down to index 1: the last layer makes sides[0]; it has no norm, and a gain of its own.
        channels = 256
        for side in sides[-2:0:-1]:
            half = max(32, channels // 2)
            up = conv_transpose(channels, half, kernel(side), LEAKY, bias=False)
            layers += [up, norm("batch", half), activation("leaky_relu")]
            channels = half
        if len(sides) == 1:
            output: nn.Module = conv(channels, shape[0], gain=DIVERSE)
        else:
            output = conv_transpose(channels, shape[0], kernel(sides[0]), DIVERSE)
        super().__init__(*layers, output)


class ArticleDiscriminator(nn.Sequential):
    """[N, C, H, W] -> [N, 1], the logit of an image being real."""

    def __init__(self, dropout: float, shape: tuple[int, int, int]) -> None:
        sides = halvings((shape[1], shape[2]), 2)
        layers: list[nn.Module] = []
        for inputs, filters, side in ((shape[0], 64, sides[0]), (64, 128, sides[1])):
            layers += [conv(inputs, filters, kernel(side), 2, LEAKY), activation("leaky_relu")]
            layers += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*layers, nn.Flatten(), linear(128 * math.prod(sides[2]), 1))
        self.smallest = sides[2]


class DCGANGenerator(nn.Sequential):
    """[N, inputs] -> [N, C, H, W], unbounded: transposed convolutions (Radford et al. 2016).

    `width` channels come before the last layer; each halving of the image has twice as many.
    """

    def __init__(self, inputs: int, shape: tuple[int, int, int], width: int) -> None:
        sides, strides = side_halvings((shape[1], shape[2]))
        widths = [min(width * 2**level, MOST * width) for level in range(max(1, len(strides)))]
        start = (widths[-1], *sides[-1])
        # No bias: batch normalisation would subtract it again.
        layers: list[nn.Module] = [
            linear(inputs, math.prod(start), LEAKY, bias=False),
            nn.Unflatten(1, start),
            norm("batch", start[0]),
            activation("leaky_relu"),
        ]
        for level in range(len(strides) - 1, 0, -1):
            size, stride = kernel(sides[level], strides[level]), strides[level]
            layers += [
                conv_transpose(widths[level], widths[level - 1], size, LEAKY, False, stride),
                norm("batch", widths[level - 1]),
                activation("leaky_relu"),
            ]
        if strides:
            size = kernel(sides[0], strides[0])
            layers.append(conv_transpose(widths[0], shape[0], size, DIVERSE, True, strides[0]))
        else:
            layers.append(conv(width, shape[0], gain=DIVERSE))
        super().__init__(*layers)


class DCGANDiscriminator(nn.Sequential):
    """[N, C, H, W] -> [N, 1]: strided convolutions, without batch normalisation.

    So images do not mix: R1 is the gradient of one image, and ranks agree.
    """

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        sides, strides = side_halvings((shape[1], shape[2]))
        layers: list[nn.Module] = []
        channels = shape[0]
        for level, stride in enumerate(strides):
            features = min(width * 2**level, MOST * width)
            size = kernel(sides[level], stride)
            layers += [conv(channels, features, size, stride, LEAKY), activation("leaky_relu")]
            channels = features
        super().__init__(*layers, nn.Flatten(), linear(channels * math.prod(sides[-1]), 1))


def side_halvings(side: Pair) -> tuple[list[Pair], list[Pair]]:
    """The sizes of an image from whole to smallest, and the stride of each step.

    Each side is halved, rounding up, as long as 4 pixels or more are left (28, 14, 7, 4), and then
    keeps its size by stride 1.
    """
    sides, strides = [side], list[Pair]()
    while True:
        height, width = (2 if (pixels + 1) // 2 >= LEAST else 1 for pixels in sides[-1])
        if (height, width) == (1, 1):
            return sides, strides
        strides.append((height, width))
        sides.append((-(-sides[-1][0] // height), -(-sides[-1][1] // width)))


def _dense(inputs: int, features: int) -> list[nn.Module]:
    # No bias: batch normalisation would subtract it again.
    layer = linear(inputs, features, LEAKY, bias=False)
    return [layer, norm("batch", features, flat=True), activation("leaky_relu")]
