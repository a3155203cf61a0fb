"""Encoders and decoders of dense layers over all pixels."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from torch import nn

from udl_dist.methods.networks.layers import GAINS, SMALL, Residual, Shape, after, linear

if TYPE_CHECKING:
    from udl_dist.methods.networks import ChainSettings

WIDTHS = (512, 256)  # where the settings give none


class DenseEncoder(nn.Sequential):
    """[B, C, H, W] -> [B, *outputs]."""

    def __init__(
        self, settings: ChainSettings, shape: tuple[int, int, int], outputs: Shape
    ) -> None:
        pixels, widths = prod(shape), settings.widths or WIDTHS
        hidden = _chain(settings, (pixels, *widths))
        output = linear(widths[-1], prod(outputs))
        super().__init__(nn.Flatten(), *hidden, output, *_shaped(outputs))


class DenseDecoder(nn.Sequential):
    """[B, *inputs] -> [B, C, H, W], unbounded; the output has scale `gain` at first."""

    def __init__(
        self,
        settings: ChainSettings,
        inputs: Shape,
        shape: tuple[int, int, int],
        gain: float = SMALL,
    ) -> None:
        widths = settings.widths or WIDTHS
        flat = [nn.Flatten()] if len(inputs) > 1 else []
        hidden = _chain(settings, (prod(inputs), *widths[::-1]))
        output = linear(widths[0], prod(shape), gain)
        super().__init__(*flat, *hidden, output, nn.Unflatten(1, shape))


def _chain(settings: ChainSettings, features: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(features):
        # A bias before batch normalisation would be subtracted again.
        bias = settings.norm != "batch"
        layers.append(linear(inputs, outputs, GAINS[settings.activation], bias))
        layers += after(settings.norm, settings.activation, outputs, flat=True)
        layers += [_residual(settings, outputs) for _ in range(settings.depth)]
    return layers


def _residual(settings: ChainSettings, features: int) -> Residual:
    # The last layer of a block starts at zero, so a deep network starts as a shallow one (Fixup,
    # Zhang et al. 2019).
    before = after(settings.norm, settings.activation, features, flat=True)
    return Residual(nn.Sequential(*before, linear(features, features, gain=0.0)))


def _shaped(outputs: Shape) -> list[nn.Module]:
    return [nn.Unflatten(1, outputs)] if len(outputs) > 1 else []
