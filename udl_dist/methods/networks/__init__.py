"""Networks as descriptions: dense and convolutional encoders and decoders that are counted first
and built later.

Knows layers and shapes; knows no loss, no device and no method. Nothing here imports torch before
`build`.
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

# The factor that keeps the variance through each function: He et al. 2015, eq. 10; LeCun et al.
# 1998 for the others.
GAINS = {
    "relu": sqrt(2),
    "leaky_relu": sqrt(2 / 1.04),
    "silu": sqrt(2),
    "gelu": sqrt(2),
    "elu": sqrt(2),
    "tanh": 5 / 3,
    "sigmoid": 1.0,
}
# the last layer of a decoder starts near zero: grey images, and tanh or sigmoid where they are
# steepest
SMALL = 0.1


@dataclass(frozen=True)
class Network:
    """A chain of layers and the shape of one image that goes in."""

    inputs: Shape
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def outputs(self) -> Shape:
        """The shape that comes out for one image."""
        last, shape = walk(self.layers, self.inputs)[-1]
        return last.outputs(shape)

    @property
    def mixes_images(self) -> bool:
        """Whether what comes out for an image depends on the others of its batch: batch
        normalisation.
        """
        return any(isinstance(layer, Norm) and layer.kind == "batch" for layer in self.layers)

    @property
    def activations(self) -> int:
        """Floats that a forward pass makes for one image: an upper bound of what is kept for the
        gradient.
        """
        return prod(self.inputs) + sum(
            layer.activations(shape) for layer, shape in walk(self.layers, self.inputs)
        )

    @property
    def flops(self) -> int:
        """Multiply-adds of a forward pass for one image; forward and backward take about three
        times as many.
        """
        return sum(layer.flops(shape) for layer, shape in walk(self.layers, self.inputs))

    def in_words(self) -> str:
        """The kind, and the width of each layer of weights: "conv 32-64-8"; residual blocks keep
        the width.
        """
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
        """The network as a torch module on the CPU, initialised from torch's current random
        state.
        """
        from udl_dist.methods.networks.modules import chain

        return chain(self.layers)


@dataclass(frozen=True)
class NetworkSettings:
    """How an encoder is made; a decoder is its mirror image."""

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
    """A network [C, H, W] -> [outputs]; raise UsageError if the image cannot be halved once for
    each width.
    """
    if settings.kind == "dense":
        return Network(shape, _dense_encoder(settings, prod(shape), outputs))
    sides = halvings((shape[1], shape[2]), len(_widths(settings, shape)))
    layers: list[Layer] = []
    channels = shape[0]
    for width, side in zip(_widths(settings, shape), sides, strict=False):
        layers += [_conv(settings, channels, width, kernel(side), 2), *_after(settings, width)]
        layers += [_conv_residual(settings, width)] * settings.depth
        channels = width
    features = channels * prod(sides[-1])
    return Network(shape, (*layers, Reshape((features,)), Linear(features, outputs)))


def decoder(
    settings: NetworkSettings, latent_dim: int, shape: Shape, gain: float = SMALL
) -> Network:
    """A network [latent_dim] -> [C, H, W] that mirrors `encoder`; its output is unbounded, at first
    of scale `gain`.
    """
    if settings.kind == "dense":
        return Network(
            (latent_dim,),
            (*_dense_decoder(settings, latent_dim, prod(shape), gain), Reshape(shape)),
        )
    widths = _widths(settings, shape)
    sides = halvings((shape[1], shape[2]), len(widths))
    start = (widths[-1], *sides[-1])
    layers: list[Layer] = [
        Linear(latent_dim, prod(start), GAINS[settings.activation]),
        Reshape(start),
    ]
    layers += _after(settings, widths[-1])
    for level in range(len(widths) - 1, -1, -1):
        layers += [_conv_residual(settings, widths[level])] * settings.depth
        if level:
            layers += _up(settings, widths[level], widths[level - 1], sides[level])
    return Network(
        (latent_dim,), (*layers, ConvTranspose(widths[0], shape[0], kernel(sides[0]), gain))
    )


def halvings(sides: Pair, times: int) -> list[Pair]:
    """The sizes of an image from whole to smallest, each half of the one before, rounded up: 28,
    14, 7, 4.
    """
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
    """The kernel that halves these sides exactly: 4 an even one, 3 an odd one, so that the way back
    is exact too.
    """
    return (3 if sides[0] % 2 else 4, 3 if sides[1] % 2 else 4)


def _widths(settings: NetworkSettings, shape: Shape) -> tuple[int, ...]:
    if settings.widths:
        return settings.widths
    if settings.kind == "dense":
        return (512, 256)
    sides = halvings((shape[1], shape[2]), 1)
    while max(sides[-1]) > 8 and min(sides[-1]) > 1:
        sides = halvings(sides[0], len(sides))
    return tuple(min(32 * 2**level, 256) for level in range(len(sides) - 1))


def _dense_encoder(settings: NetworkSettings, pixels: int, outputs: int) -> tuple[Layer, ...]:
    widths = _widths(settings, ())
    hidden = _dense_chain(settings, (pixels, *widths))
    return (Reshape((pixels,)), *hidden, Linear(widths[-1], outputs))


def _dense_decoder(
    settings: NetworkSettings, latent_dim: int, pixels: int, gain: float
) -> tuple[Layer, ...]:
    widths = _widths(settings, ())[::-1]
    return (*_dense_chain(settings, (latent_dim, *widths)), Linear(widths[-1], pixels, gain))


def _dense_chain(settings: NetworkSettings, features: tuple[int, ...]) -> list[Layer]:
    layers: list[Layer] = []
    for inputs, outputs in pairwise(features):
        layers += [_linear(settings, inputs, outputs), *_after(settings, outputs, flat=True)]
        layers += [_dense_residual(settings, outputs)] * settings.depth
    return layers


def _linear(settings: NetworkSettings, inputs: int, outputs: int) -> Linear:
    # A bias before batch normalisation would be subtracted again.
    return Linear(inputs, outputs, GAINS[settings.activation], settings.norm != "batch")


def _conv(settings: NetworkSettings, inputs: int, channels: int, kernel: Pair, stride: int) -> Conv:
    return Conv(
        inputs, channels, kernel, stride, GAINS[settings.activation], settings.norm != "batch"
    )


def _up(settings: NetworkSettings, inputs: int, channels: int, sides: Pair) -> list[Layer]:
    bias = settings.norm != "batch"
    return [
        ConvTranspose(inputs, channels, kernel(sides), GAINS[settings.activation], bias),
        *_after(settings, channels),
    ]


def _after(settings: NetworkSettings, channels: int, flat: bool = False) -> list[Layer]:
    norm = [] if settings.norm == "none" else [Norm(settings.norm, channels, flat)]
    return [*norm, Activation(settings.activation)]


def _conv_residual(settings: NetworkSettings, channels: int) -> Residual:
    # The last layer of a block starts at zero, so a deep network starts as a shallow one (Zhang et
    # al. 2019, Fixup).
    last = Conv(channels, channels, (3, 3), gain=0.0)
    before = _after(settings, channels)
    return Residual((*before, _conv(settings, channels, channels, (3, 3), 1), *before, last))


def _dense_residual(settings: NetworkSettings, features: int) -> Residual:
    return Residual((*_after(settings, features, flat=True), Linear(features, features, gain=0.0)))
