"""Networks as descriptions: encoders and decoders that are counted first and built later.

This package knows no loss, device or method. Nothing here imports torch before `build`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt
from typing import TYPE_CHECKING, Literal

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.networks.layers import (
    Activation,
    ActivationKind,
    Conv,
    ConvTranspose,
    Layer,
    Linear,
    Norm,
    NormKind,
    Pair,
    Reshape,
    Residual,
    Shape,
    walk,
)

if TYPE_CHECKING:
    from torch import nn

# The factor that keeps the variance through each function (He et al. 2015, eq. 10; for tanh and
# sigmoid LeCun et al. 1998). Of leaky ReLU with slope a it is √(2 / (1 + a²)), here a = 0.2.
GAINS = {
    "relu": sqrt(2),
    "leaky_relu": sqrt(2 / 1.04),
    "silu": sqrt(2),
    "gelu": sqrt(2),
    "elu": sqrt(2),
    "tanh": 5 / 3,
    "sigmoid": 1.0,
}
# The last layer of a decoder starts near zero: grey images, where tanh and sigmoid are steepest.
SMALL = 0.1


@dataclass(frozen=True)
class Network:
    """A chain of layers and the shape of one image that goes in."""

    inputs: Shape
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """The count of learned numbers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def outputs(self) -> Shape:
        """The shape of the output for one image."""
        last, shape = walk(self.layers, self.inputs)[-1]
        return last.outputs(shape)

    @property
    def mixes_images(self) -> bool:
        """Whether an image's output depends on the others of its batch (batch normalisation)."""
        return any(isinstance(layer, Norm) and layer.kind == "batch" for layer in self.layers)

    @property
    def activations(self) -> int:
        """Floats of a forward pass for one image: an upper bound of those stored for backward."""
        return prod(self.inputs) + sum(
            layer.activations(shape) for layer, shape in walk(self.layers, self.inputs)
        )

    @property
    def flops(self) -> int:
        """Multiply-adds of a forward pass for one image."""
        return sum(layer.flops(shape) for layer, shape in walk(self.layers, self.inputs))

    def in_words(self) -> str:
        """The kind, and the width of each layer with weights: "conv 32-64-8"."""
        weights = [
            layer for layer in self.layers if isinstance(layer, Linear | Conv | ConvTranspose)
        ]
        if not weights:  # the decoder of tied weights, a learned variance
            return "bias"
        kind = "dense" if all(isinstance(layer, Linear) for layer in weights) else "conv"
        widths = "-".join(
            str(layer.features if isinstance(layer, Linear) else layer.channels)
            for layer in weights
        )
        blocks = sum(isinstance(layer, Residual) for layer in self.layers)
        return f"{kind} {widths}" + (f" with {blocks} residual blocks" if blocks else "")

    def build(self) -> nn.Sequential:
        """The network as a torch module on the CPU, initialised from torch's random state."""
        from udl_dist.methods.networks.modules import chain

        return chain(self.layers)


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


def encoder(settings: NetworkSettings, shape: Shape, outputs: int) -> Network:
    """A network [C, H, W] -> [outputs]; raise UsageError for more widths than halvings."""
    widths = _widths(settings, shape)
    if settings.kind == "dense":
        pixels = prod(shape)
        hidden = _dense_chain(settings, (pixels, *widths))
        return Network(shape, (Reshape((pixels,)), *hidden, Linear(widths[-1], outputs)))
    sides = halvings((shape[1], shape[2]), len(widths))
    layers: list[Layer] = []
    channels = shape[0]
    # sides has one more entry, the size after the last halving.
    for width, side in zip(widths, sides, strict=False):
        layers.append(Conv(channels, width, kernel(side), 2, *_gain_and_bias(settings)))
        layers += _after(settings, width)
        layers += [_conv_residual(settings, width)] * settings.depth
        channels = width
    features = channels * prod(sides[-1])
    return Network(shape, (*layers, Reshape((features,)), Linear(features, outputs)))


def decoder(
    settings: NetworkSettings, latent_dim: int, shape: Shape, gain: float = SMALL
) -> Network:
    """A network [latent_dim] -> [C, H, W], unbounded; its output has scale `gain` at first."""
    widths = _widths(settings, shape)
    if settings.kind == "dense":
        hidden = _dense_chain(settings, (latent_dim, *widths[::-1]))
        output = (Linear(widths[0], prod(shape), gain), Reshape(shape))
        return Network((latent_dim,), (*hidden, *output))
    sides = halvings((shape[1], shape[2]), len(widths))
    start = (widths[-1], *sides[-1])  # the smallest map of channels
    # With a bias under any norm: `_after` normalises channels, and this bias is one for each pixel.
    layers: list[Layer] = [Linear(latent_dim, prod(start), GAINS[settings.activation])]
    layers += [Reshape(start), *_after(settings, widths[-1])]
    for level in range(len(widths) - 1, -1, -1):
        layers += [_conv_residual(settings, widths[level])] * settings.depth
        if level:
            width, side = widths[level - 1], kernel(sides[level])
            layers.append(ConvTranspose(widths[level], width, side, *_gain_and_bias(settings)))
            layers += _after(settings, width)
    layers.append(ConvTranspose(widths[0], shape[0], kernel(sides[0]), gain))
    return Network((latent_dim,), tuple(layers))


def halvings(sides: Pair, times: int) -> list[Pair]:
    """The sizes of an image from whole to smallest, halved and rounded up: 28, 14, 7, 4."""
    sizes = [sides]
    for _ in range(times):
        if min(sizes[-1]) < 2:
            height, width = sides
            raise UsageError(
                f"network.widths has {times} entries, but an image of {height}×{width} can be"
                f" halved {len(sizes) - 1} times: give at most {len(sizes) - 1}"
            )
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def kernel(sides: Pair) -> Pair:
    """The kernel of stride 2 that halves these sides exactly: 4 for an even side, 3 for any other.

    A transposed convolution with the same kernel then gives back the same size.
    """
    return (3 if sides[0] % 2 else 4, 3 if sides[1] % 2 else 4)


def _widths(settings: NetworkSettings, shape: Shape) -> tuple[int, ...]:
    if settings.widths:
        return settings.widths
    if settings.kind == "dense":
        return (512, 256)
    # Halved until both sides have 8 pixels or fewer, or one of them a single pixel.
    sides = halvings((shape[1], shape[2]), 1)
    while max(sides[-1]) > 8 and min(sides[-1]) > 1:
        sides = halvings(sides[0], len(sides))
    return tuple(min(32 * 2**level, 256) for level in range(len(sides) - 1))


def _dense_chain(settings: NetworkSettings, features: tuple[int, ...]) -> list[Layer]:
    layers: list[Layer] = []
    for inputs, outputs in pairwise(features):
        layers.append(Linear(inputs, outputs, *_gain_and_bias(settings)))
        layers += _after(settings, outputs, flat=True)
        layers += [_dense_residual(settings, outputs)] * settings.depth
    return layers


def _gain_and_bias(settings: NetworkSettings) -> tuple[float, bool]:
    # A bias before batch normalisation would be subtracted again.
    return GAINS[settings.activation], settings.norm != "batch"


def _after(settings: NetworkSettings, channels: int, flat: bool = False) -> list[Layer]:
    norm = [] if settings.norm == "none" else [Norm(settings.norm, channels, flat)]
    return [*norm, Activation(settings.activation)]


def _conv_residual(settings: NetworkSettings, channels: int) -> Residual:
    # The last layer of a block starts at zero, so a deep network starts as a shallow one (Fixup,
    # Zhang et al. 2019).
    last = Conv(channels, channels, (3, 3), gain=0.0)
    before = _after(settings, channels)
    first = Conv(channels, channels, (3, 3), 1, *_gain_and_bias(settings))
    return Residual((*before, first, *before, last))


def _dense_residual(settings: NetworkSettings, features: int) -> Residual:
    return Residual((*_after(settings, features, flat=True), Linear(features, features, gain=0.0)))
