"""Networks as ordinary torch modules: encoders and decoders, chosen by settings.

This package knows no loss, device or method. A network is one class in one of these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from udl_dist.core.config_schema import setting
from udl_dist.methods.networks.conv import ConvDecoder, ConvEncoder
from udl_dist.methods.networks.dense import DenseDecoder, DenseEncoder
from udl_dist.methods.networks.layers import SMALL, ActivationKind, NormKind, Shape


@dataclass(frozen=True)
class NetworkSettings:
    """The layers of an encoder; a decoder mirrors them."""

    kind: Literal["dense", "conv"] = setting(
        "conv", "dense layers over all pixels, or strided convolutions"
    )
    widths: tuple[int, ...] = setting(
        (),
        "dense: features of each hidden layer, image to latent; conv: channels of each halving of"
        " the image; empty: 512, 256 for dense, and for conv 32, 64, 128, 256, 256 until 8 pixels"
        " or fewer are left",
        low=1,
    )
    depth: int = setting(
        0, "residual blocks after each of the widths; 0 is a plain chain", low=0, high=16
    )
    norm: NormKind = setting(
        "group",
        "normalisation after each layer: over groups of channels (dense: over all features), none,"
        " or over the batch",
    )
    activation: ActivationKind = setting("silu", "the function after each layer")


def encoder(
    settings: NetworkSettings, shape: tuple[int, int, int], outputs: tuple[int, ...]
) -> nn.Sequential:
    """A network [B, C, H, W] -> [B, *outputs]; raise UsageError if it does not fit the size."""
    kinds: dict[str, type[DenseEncoder | ConvEncoder]] = {
        "dense": DenseEncoder,
        "conv": ConvEncoder,
    }
    return kinds[settings.kind](settings, shape, outputs)


def decoder(
    settings: NetworkSettings, inputs: Shape, shape: tuple[int, int, int], gain: float = SMALL
) -> nn.Sequential:
    """A network [B, *inputs] -> [B, C, H, W], unbounded; its output has scale `gain` at first."""
    kinds: dict[str, type[DenseDecoder | ConvDecoder]] = {
        "dense": DenseDecoder,
        "conv": ConvDecoder,
    }
    return kinds[settings.kind](settings, inputs, shape, gain)
