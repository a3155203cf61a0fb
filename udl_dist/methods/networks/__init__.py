"""Networks as ordinary torch modules: encoders and decoders, chosen by settings.

This package knows no loss, device or method. A network is one class in one of these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.networks.conv import ConvDecoder, ConvEncoder
from udl_dist.methods.networks.dense import DenseDecoder, DenseEncoder
from udl_dist.methods.networks.layers import SMALL, ActivationKind, NormKind, Shape
from udl_dist.methods.networks.resnet import ResNetDecoder, ResNetEncoder, plan_of


@dataclass(frozen=True)
class ChainSettings:
    """The layers of an encoder that is a plain chain; a decoder mirrors them."""

    kind: Literal["dense", "conv"] = setting(
        "conv", "dense layers over all pixels, or a chain of strided convolutions"
    )
    widths: tuple[int, ...] = setting(
        (),
        "dense: features of each hidden layer, image to latent; conv: channels of each halving of"
        " the image; resnet: channels of each level, half as large as the one before; empty: 512,"
        " 256 for dense; for conv 32, 64, 128, 256, 256 and for resnet 32, 64, 128, 128 until 8"
        " pixels or fewer are left",
        low=1,
    )
    depth: int = setting(
        0,
        "residual blocks after each of the widths; 0 is a plain chain, and 1 for resnet",
        low=0,
        high=16,
    )
    norm: NormKind = setting(
        "group",
        "normalisation after each layer: over groups of channels (dense: over all features), none,"
        " or over the batch",
    )
    activation: ActivationKind = setting("silu", "the function after each layer")


@dataclass(frozen=True)
class NetworkSettings(ChainSettings):
    """The same, where the encoder may also be made of residual blocks."""

    kind: Literal["dense", "conv", "resnet"] = setting(  # type: ignore[assignment]
        "resnet",
        "dense layers over all pixels, a chain of strided convolutions, or residual blocks",
    )
    attention: tuple[int, ...] = setting(
        (), "resnet: sizes of maps with self-attention; 16 stands for 9 to 16 pixels", low=1
    )
    first_stride: Literal[1, 2] = setting(
        2, "resnet: 2 begins the levels at half the size of the image, a quarter of the work"
    )

    def __post_init__(self) -> None:
        default = type(self).__dataclass_fields__
        for name in ("attention", "first_stride"):
            if self.kind != "resnet" and getattr(self, name) != default[name].default:
                raise UsageError(f"method.network.{name} is for method.network.kind = resnet only")


def encoder(
    settings: ChainSettings, shape: tuple[int, int, int], outputs: tuple[int, ...]
) -> nn.Module:
    """A network [B, C, H, W] -> [B, *outputs]; raise UsageError if it does not fit the size."""
    if isinstance(settings, NetworkSettings) and settings.kind == "resnet":
        return ResNetEncoder(plan_of(settings, shape), shape, outputs)
    kind = DenseEncoder if settings.kind == "dense" else ConvEncoder
    return kind(settings, shape, outputs)


def decoder(
    settings: ChainSettings, inputs: Shape, shape: tuple[int, int, int], gain: float = SMALL
) -> nn.Module:
    """A network [B, *inputs] -> [B, C, H, W], unbounded; its output has scale `gain` at first."""
    if isinstance(settings, NetworkSettings) and settings.kind == "resnet":
        return ResNetDecoder(plan_of(settings, shape), inputs, shape, gain)
    kind = DenseDecoder if settings.kind == "dense" else ConvDecoder
    return kind(settings, inputs, shape, gain)
