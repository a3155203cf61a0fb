"""Generator and discriminator of R3GAN (Huang et al. 2024), for images of any size.

Residual blocks of grouped convolutions without any norm, between resamplers by a low pass; images
do not mix. Convolutions have no bias: biases stand in the blocks alone, before each activation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.errors import UsageError
from udl_dist.methods.networks.gan import side_halvings
from udl_dist.methods.networks.layers import GAINS, SLOPE, Pair, conv, linear

BLOCKS = 2  # at each size
EXPANSION = 2  # channels inside a block, for each of its own
GROUP = 16  # channels of a group
MOST = 8  # times the first width are the most channels
LOW_PASS = (1.0, 3.0, 3.0, 1.0)  # [1, 2, 1] convolved with the box that doubles a pixel


class R3Generator(nn.Sequential):
    """[N, inputs] -> [N, C, H, W], unbounded.

    `widths` are channels at each size, smallest first; empty: `width` at full size, each halving
    twice as many, at most 8 times. Raises UsageError for widths that do not fit.
    """

    def __init__(
        self, inputs: int, shape: tuple[int, int, int], width: int, widths: tuple[int, ...]
    ) -> None:
        sides, strides = side_halvings((shape[1], shape[2]))
        channels = _channels(width, widths, len(sides))
        gain = _gain(len(channels))
        layers: list[nn.Module] = [Basis(inputs, channels[-1], sides[-1])]
        layers += [Block(channels[-1], gain) for _ in range(BLOCKS)]
        for level in range(len(strides) - 1, -1, -1):
            if channels[level + 1] != channels[level]:
                layers.append(conv(channels[level + 1], channels[level], (1, 1), bias=False))
            layers.append(Upsample(strides[level], sides[level]))
            layers += [Block(channels[level], gain) for _ in range(BLOCKS)]
        super().__init__(*layers, conv(channels[0], shape[0], (1, 1), bias=False))


class R3Discriminator(nn.Sequential):
    """[N, C, H, W] -> [N, 1], the mirror of the generator; `width` and `widths` as there."""

    def __init__(self, shape: tuple[int, int, int], width: int, widths: tuple[int, ...]) -> None:
        sides, strides = side_halvings((shape[1], shape[2]))
        channels = _channels(width, widths, len(sides))
        gain = _gain(len(channels))
        layers: list[nn.Module] = [conv(shape[0], channels[0], (1, 1), bias=False)]
        for level, stride in enumerate(strides):
            layers += [Block(channels[level], gain) for _ in range(BLOCKS)]
            layers.append(Downsample(stride))
            if channels[level] != channels[level + 1]:
                layers.append(conv(channels[level], channels[level + 1], (1, 1), bias=False))
        layers += [Block(channels[-1], gain) for _ in range(BLOCKS)]
        last = channels[-1]
        # One filter of the whole smallest map for each channel.
        whole = nn.Conv2d(last, last, sides[-1], groups=last, bias=False)
        nn.init.normal_(whole.weight, std=1 / math.sqrt(math.prod(sides[-1])))
        super().__init__(*layers, whole, nn.Flatten(), linear(last, 1, bias=False))


class Block(nn.Module):
    """x plus 1×1, 3×3 in groups, 1×1 of it, [N, C, H, W] -> the same; `gain` is that of layers.

    The last layer starts at zero (Fixup, Zhang et al. 2019).
    """

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        inside = EXPANSION * channels
        self.first = conv(channels, inside, (1, 1), gain=gain, bias=False)
        self.grouped = nn.Conv2d(inside, inside, 3, padding=1, groups=inside // GROUP, bias=False)
        nn.init.normal_(self.grouped.weight, std=gain / math.sqrt(9 * GROUP))
        self.last = conv(inside, channels, (1, 1), gain=0.0, bias=False)
        self.first_bias = nn.Parameter(torch.zeros(inside, 1, 1))
        self.grouped_bias = nn.Parameter(torch.zeros(inside, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        inner = functional.leaky_relu(self.first(inputs) + self.first_bias, SLOPE)
        inner = functional.leaky_relu(self.grouped(inner) + self.grouped_bias, SLOPE)
        out: Tensor = inputs + self.last(inner)
        return out


class Basis(nn.Module):
    """[N, inputs] -> [N, C, h, w]: a learned map of each channel, times a number from the input."""

    def __init__(self, inputs: int, channels: int, side: Pair) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.empty(channels, *side))
        nn.init.normal_(self.maps)
        self.scales = linear(inputs, channels, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.maps * self.scales(inputs)[:, :, None, None]
        return out


class Upsample(nn.Module):
    """[N, C, h, w] -> [N, C, H, W]: each side of stride 2 doubled, then a low pass of 4 pixels."""

    def __init__(self, stride: Pair, side: Pair) -> None:
        super().__init__()
        self.stride, self.side = stride, side

    def forward(self, inputs: Tensor) -> Tensor:
        kernel, padding = _low_pass(self.stride, inputs)
        large = functional.conv_transpose2d(
            inputs.flatten(0, 1)[:, None],
            kernel * math.prod(self.stride),
            None,
            self.stride,
            padding,
        )
        # A side that was rounded up loses its last pixel.
        cut = large[:, :, : self.side[0], : self.side[1]]
        return cut.reshape(*inputs.shape[:2], *self.side)


class Downsample(nn.Module):
    """[N, C, H, W] -> [N, C, h, w]: the same low pass, then every other pixel."""

    def __init__(self, stride: Pair) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        height, width = (
            side % step for side, step in zip(inputs.shape[2:], self.stride, strict=True)
        )
        if height or width:  # rounded up: the last pixel comes twice
            inputs = functional.pad(inputs, (0, width, 0, height), mode="replicate")
        kernel, padding = _low_pass(self.stride, inputs)
        small = functional.conv2d(inputs.flatten(0, 1)[:, None], kernel, None, self.stride, padding)
        return small.view(*inputs.shape[:2], *small.shape[2:])


# -> [1, 1, 4 or 1, 4 or 1]
def _low_pass(stride: Pair, like: Tensor) -> tuple[Tensor, Pair]:
    """The kernel and its padding: nothing is filtered along a side of stride 1."""
    rows, columns = (
        torch.tensor(LOW_PASS if step == 2 else (1.0,), dtype=like.dtype, device=like.device)
        for step in stride
    )
    kernel = rows[:, None] * columns
    height, width = (int(step == 2) for step in stride)
    return (kernel / kernel.sum())[None, None], (height, width)


def _gain(sizes: int) -> float:
    """Of the layers in blocks: N blocks of 3 layers start with N^(-1/4) times the usual gain."""
    return GAINS["leaky_relu"] / math.sqrt(math.sqrt(BLOCKS * sizes))


def _channels(width: int, widths: tuple[int, ...], sizes: int) -> list[int]:
    """Channels of each size, the largest size first."""
    if widths and len(widths) != sizes:
        raise UsageError(
            f"method.r3_widths has {len(widths)} entries, but images of data.size have {sizes}"
            f" sizes down to about 4 pixels: give {sizes}, the smallest size first"
        )
    channels = list(widths[::-1]) or [min(2**level, MOST) * width for level in range(sizes)]
    least = GROUP // EXPANSION
    if wrong := [number for number in channels if number % least]:
        name = "method.r3_widths" if widths else "method.width"
        raise UsageError(
            f"{name} gives an r3 network {wrong[0]} channels, not a multiple of {least}, as"
            f" groups of {GROUP} need"
        )
    return channels
