"""Generators and discriminators of residual blocks, for any size, in which images do not mix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.methods.networks.gan import DIVERSE, LEAKY, side_halvings
from udl_dist.methods.networks.layers import SLOPE, Pair, activation, conv, kernel, linear

MOST_GENERATOR, MOST_DISCRIMINATOR = 8, 4  # times the first width are the most channels
EPSILON = 1e-4  # below which a mean square counts as zero


class ResNetGenerator(nn.Sequential):
    """[N, inputs] -> [N, C, H, W], unbounded: blocks that double the image, from about 4×4.

    Normalised image by image. `width` channels at full size; each halving has twice as many. What
    the blocks add is zero at first, so that a deep network starts as a shallow one (Fixup, Zhang et
    al. 2019).
    """

    def __init__(self, inputs: int, shape: tuple[int, int, int], width: int) -> None:
        sides, strides = side_halvings((shape[1], shape[2]))
        widths = [min(2**level, MOST_GENERATOR) * width for level in range(len(sides))]
        start = (widths[-1], *sides[-1])
        blocks = [
            GrowingBlock(widths[level + 1], widths[level], strides[level], sides[level])
            for level in range(len(strides) - 1, -1, -1)
        ]
        super().__init__(
            linear(inputs, math.prod(start)),
            nn.Unflatten(1, start),
            *blocks,
            NormedLeaky(),
            conv(widths[0], shape[0], gain=DIVERSE),
        )


class ResNetDiscriminator(nn.Sequential):
    """[N, C, H, W] -> [N, 1]: a strided convolution, then blocks that halve the image to about 4×4.

    No normalisation: images do not mix, so that the gradient of the sum of logits is that of each
    image, as R1 needs. `width` channels after the first halving, doubled by each other one.
    """

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        side = (shape[1], shape[2])
        # A free kernel of 4 sees the finest grids, which a mean over 2×2 pixels would hide; at full
        # size a block would cost more than all others together.
        start = conv(shape[0], width, kernel(side), 2)
        sides, strides = side_halvings(((side[0] + 1) // 2, (side[1] + 1) // 2))
        widths = [min(2**level, MOST_DISCRIMINATOR) * width for level in range(len(sides))]
        blocks = [
            ShrinkingBlock(widths[level], widths[level + 1], stride)
            for level, stride in enumerate(strides)
        ]
        super().__init__(
            start,
            *blocks,
            activation("leaky_relu"),
            conv(widths[-1], widths[-1], gain=LEAKY),
            activation("leaky_relu"),
            nn.Flatten(),
            linear(widths[-1] * math.prod(sides[-1]), 1),
        )


class GrowingBlock(nn.Module):
    """[N, C, h, w] -> [N, D, H, W]: enlarged to `side`, plus two convolutions."""

    def __init__(self, inputs: int, channels: int, stride: Pair, side: Pair) -> None:
        super().__init__()
        self.stride, self.side = stride, side
        self.shortcut = _shortcut(inputs, channels)
        self.enlarge = Enlarge(inputs, channels, stride, side)
        self.refine = conv(channels, channels, gain=0.0)
        self.activation = NormedLeaky()

    def forward(self, inputs: Tensor) -> Tensor:
        body = self.refine(self.activation(self.enlarge(self.activation(inputs))))
        # The shortcut before it is enlarged, where it is cheap. Bilinear: copies have edges
        # that blocks are slow to unlearn (mosaics, on drawn faces).
        factors = [float(step) for step in self.stride]
        enlarged = functional.interpolate(
            self.shortcut(inputs), scale_factor=factors, mode="bilinear"
        )
        out: Tensor = enlarged[:, :, : self.side[0], : self.side[1]] + body
        return out


class ShrinkingBlock(nn.Module):
    """[N, C, H, W] -> [N, D, h, w]: means over pixels, plus two convolutions."""

    def __init__(self, inputs: int, channels: int, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut = _shortcut(inputs, channels)
        self.first = conv(inputs, inputs, gain=LEAKY)
        self.shrink = Shrink(inputs, channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        body = self.shrink(_leaky(self.first(_leaky(inputs))))
        # The mean of what is there at an odd edge, as in `Shrink`.
        shrunk = functional.avg_pool2d(inputs, self.stride, ceil_mode=True, count_include_pad=False)
        out: Tensor = self.shortcut(shrunk) + body
        return out


class NormedLeaky(nn.Module):
    """Leaky ReLU of features of mean square 1 in each image (RMSNorm, Zhang & Sennrich 2019).

    No sum over images, so that an image depends on its own latent alone. Without it a generator of
    digits saturated tanh within ten steps and never came back. Normalised pixel by pixel, features
    that pass through zero turn at once: images of few flat colours with hard contours.
    """

    def forward(self, inputs: Tensor) -> Tensor:  # [N, C, H, W] -> the same
        square = inputs.square().mean((1, 2, 3), keepdim=True)
        return functional.leaky_relu(inputs * (square + EPSILON).rsqrt(), SLOPE)


class Enlarge(nn.Module):
    """Each pixel doubled along the sides of stride 2, then a convolution of 3×3, as one map.

    Doubling is a transposed convolution with a box, and two convolutions are one with the
    convolved kernels: the same sums with 4/9 of the multiplications, and no large copy in memory.
    A kernel of 4 at stride 2 overlaps evenly: no grid of dots (Odena et al. 2016).
    """

    def __init__(self, inputs: int, channels: int, stride: Pair, side: Pair) -> None:
        super().__init__()
        self.stride, self.side = stride, side
        scale = LEAKY / math.sqrt(9 * inputs)
        self.weight = nn.Parameter(torch.empty(inputs, channels, 3, 3))
        nn.init.normal_(self.weight, std=scale)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        weight = _convolved_with_box(self.weight, self.stride)
        large = functional.conv_transpose2d(inputs, weight, self.bias, self.stride, 1)
        return large[:, :, : self.side[0], : self.side[1]]  # an odd side loses its last pixel


class Shrink(nn.Module):
    """A convolution of 3×3, then means over the sides of stride 2, as one map (see `Enlarge`)."""

    def __init__(self, inputs: int, channels: int, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.zeros(channels, inputs, 3, 3))  # see `ResNetGenerator`
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        height, width = (
            side % step for side, step in zip(inputs.shape[2:], self.stride, strict=True)
        )
        if height or width:  # an odd side gets its last pixel twice
            inputs = functional.pad(inputs, (0, width, 0, height), mode="replicate")
        weight = _convolved_with_box(self.weight, self.stride) / math.prod(self.stride)
        return functional.conv2d(inputs, weight, self.bias, self.stride, 1)


def _convolved_with_box(weight: Tensor, stride: Pair) -> Tensor:
    """A kernel of 3×3, convolved with a box of `stride` pixels: 4 along each side of stride 2."""
    if stride[0] == 2:
        weight = functional.pad(weight, (0, 0, 0, 1)) + functional.pad(weight, (0, 0, 1, 0))
    if stride[1] == 2:
        weight = functional.pad(weight, (0, 1)) + functional.pad(weight, (1, 0))
    return weight


def _shortcut(inputs: int, channels: int) -> nn.Module:
    return nn.Identity() if inputs == channels else conv(inputs, channels, (1, 1), bias=False)


def _leaky(inputs: Tensor) -> Tensor:
    return functional.leaky_relu(inputs, SLOPE)
