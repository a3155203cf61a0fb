"""Encoders and decoders of strided convolutions: a plain chain, the quickest on a CPU."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import nn

from udl_dist.methods.networks.layers import (
    GAINS,
    SMALL,
    Pair,
    Residual,
    Shape,
    after,
    conv,
    conv_transpose,
    halvings,
    kernel,
    linear,
)

if TYPE_CHECKING:
    from udl_dist.methods.networks import ChainSettings


class ConvEncoder(nn.Sequential):
    """[B, C, H, W] -> [B, *outputs]; raise UsageError for more widths than halvings."""

    def __init__(
        self, settings: ChainSettings, shape: tuple[int, int, int], outputs: Shape
    ) -> None:
        widths = settings.widths or default_widths(shape)
        sides = halvings((shape[1], shape[2]), len(widths))
        layers: list[nn.Module] = []
        channels = shape[0]
        # sides has one more entry, the size after the last halving.
        for width, side in zip(widths, sides, strict=False):
            layers.append(
                conv(channels, width, kernel(side), 2, _gain(settings), bias=_bias(settings))
            )
            layers += after(settings.norm, settings.activation, width)
            layers += [_residual(settings, width) for _ in range(settings.depth)]
            channels = width
        output = linear(channels * prod(sides[-1]), prod(outputs))
        shaped = [nn.Unflatten(1, outputs)] if len(outputs) > 1 else []
        super().__init__(*layers, nn.Flatten(), output, *shaped)
        self.smallest = sides[-1]


class ConvDecoder(nn.Sequential):
    """[B, *inputs] -> [B, C, H, W], unbounded; the output has scale `gain` at first."""

    def __init__(
        self,
        settings: ChainSettings,
        inputs: Shape,
        shape: tuple[int, int, int],
        gain: float = SMALL,
    ) -> None:
        widths = settings.widths or default_widths(shape)
        sides = halvings((shape[1], shape[2]), len(widths))
        start = (widths[-1], *sides[-1])  # the smallest map of channels
        layers: list[nn.Module] = [nn.Flatten()] if len(inputs) > 1 else []
        # With a bias under any norm: the norm is of channels, and this bias is one for each pixel.
        layers += [linear(prod(inputs), prod(start), _gain(settings)), nn.Unflatten(1, start)]
        layers += after(settings.norm, settings.activation, widths[-1])
        for level in range(len(widths) - 1, -1, -1):
            layers += [_residual(settings, widths[level]) for _ in range(settings.depth)]
            if level:
                layers += _up(settings, widths[level], widths[level - 1], sides[level])
        output = conv_transpose(widths[0], shape[0], kernel(sides[0]), gain)
        super().__init__(*layers, output)
        self.smallest = sides[-1]


def default_widths(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """32, 64, 128, 256, 256 … channels until both sides have 8 pixels or fewer, or one has 1."""
    sides = halvings((shape[1], shape[2]), 1)
    while max(sides[-1]) > 8 and min(sides[-1]) > 1:
        sides = halvings(sides[0], len(sides))
    return tuple(min(32 * 2**level, 256) for level in range(len(sides) - 1))


def _up(settings: ChainSettings, inputs: int, channels: int, side: Pair) -> list[nn.Module]:
    """Doubles a map to the size `side`, that which `kernel(side)` halves."""
    double = conv_transpose(inputs, channels, kernel(side), _gain(settings), bias=_bias(settings))
    return [double, *after(settings.norm, settings.activation, channels)]


def _residual(settings: ChainSettings, channels: int) -> Residual:
    # The last layer of a block starts at zero, so a deep network starts as a shallow one (Fixup,
    # Zhang et al. 2019).
    body = [
        *after(settings.norm, settings.activation, channels),
        conv(channels, channels, gain=_gain(settings), bias=_bias(settings)),
        *after(settings.norm, settings.activation, channels),
        conv(channels, channels, gain=0.0),
    ]
    return Residual(nn.Sequential(*body))


def _gain(settings: ChainSettings) -> float:
    return GAINS[settings.activation]


def _bias(settings: ChainSettings) -> bool:
    # A bias before batch normalisation would be subtracted again.
    return settings.norm != "batch"
