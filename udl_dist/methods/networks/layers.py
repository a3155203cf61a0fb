"""The layers that all networks are made of, with their starting weights, and how images halve.

Weights start normal with std gain / √fan, biases at zero (He et al. 2015, eq. 10). `gain` is that
of the function that follows (see GAINS); 1 where none does; 0 starts a layer at zero. torch's own
defaults ignore the activation, and a plain chain that starts from them ends with twice the error.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from udl_dist.errors import UsageError

Pair = tuple[int, int]  # height, width
Shape = tuple[int, ...]  # of one image or latent: (C, H, W) or (Z,)

ActivationKind = Literal["relu", "leaky_relu", "silu", "gelu", "elu", "tanh", "sigmoid"]
NormKind = Literal["group", "none", "batch"]

SLOPE = 0.2  # of a leaky ReLU below zero
MOST_EMBEDDED = 64  # numbers of a class next to a latent
# The factor that keeps the variance through each function (He et al. 2015, eq. 10; for tanh and
# sigmoid LeCun et al. 1998). Of a leaky ReLU with slope a it is √(2 / (1 + a²)).
GAINS = {
    "relu": sqrt(2),
    "leaky_relu": sqrt(2 / (1 + SLOPE**2)),
    "silu": sqrt(2),
    "gelu": sqrt(2),
    "elu": sqrt(2),
    "tanh": 5 / 3,
    "sigmoid": 1.0,
}
# The gain of a decoder's last layer: grey images at first, where tanh and sigmoid are steepest.
SMALL = 0.1


def linear(inputs: int, outputs: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A dense layer, [B, inputs] -> [B, outputs]."""
    layer = nn.Linear(inputs, outputs, bias)
    _start(layer, gain, inputs)
    return layer


def conv(
    inputs: int,
    channels: int,
    size: Pair = (3, 3),
    stride: int | Pair = 1,
    gain: float = 1.0,
    bias: bool = True,
) -> nn.Conv2d:
    """A convolution padded by 1, of 1×1 by 0; see `kernel` for those that halve an image."""
    layer = nn.Conv2d(inputs, channels, size, stride, int(size[0] > 1), bias=bias)
    # Padding, which is zero, counts as input too.
    _start(layer, gain, size[0] * size[1] * inputs)
    return layer


def conv_transpose(
    inputs: int,
    channels: int,
    size: Pair,
    gain: float = 1.0,
    bias: bool = True,
    stride: Pair = (2, 2),
) -> nn.ConvTranspose2d:
    """The inverse in size of a `conv` of stride 2: kernel 4 makes 2n pixels of n, kernel 3 2n - 1.

    torch takes the fan of such a layer from the wrong axis and ignores its stride: each pixel meets
    a half of the kernel along each side of stride 2.
    """
    layer = nn.ConvTranspose2d(inputs, channels, size, stride, 1, bias=bias)
    _start(layer, gain, size[0] * size[1] * inputs / (stride[0] * stride[1]))
    return layer


def norm(kind: NormKind, channels: int, flat: bool = False) -> nn.Module:
    """Normalises [B, C, H, W], or [B, F] if `flat`, with a learned scale and shift."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)
    # Of features one group, which is LayerNorm; else at most 32, of 8 channels or more each.
    most = 1 if flat else min(32, max(1, channels // 8))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def activation(kind: ActivationKind) -> nn.Module:
    """A function of each number."""
    functions: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "silu": nn.SiLU,
        "gelu": nn.GELU,
        "elu": nn.ELU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
    }
    return nn.LeakyReLU(SLOPE) if kind == "leaky_relu" else functions[kind]()


def after(
    norm_kind: NormKind, activation_kind: ActivationKind, channels: int, flat: bool = False
) -> list[nn.Module]:
    """What follows a layer of a plain chain: the norm, if any, and the activation."""
    norms = [] if norm_kind == "none" else [norm(norm_kind, channels, flat)]
    return [*norms, activation(activation_kind)]


class Bias(nn.Module):
    """A learned vector that is added, [..., features] -> the same; it starts at `value`."""

    def __init__(self, features: int, value: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((features,), value))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.bias


class Residual(nn.Module):
    """The sum of the input and the body's output (He et al. 2016b, pre-activation)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = inputs + self.body(inputs)
        return out


class ClassEmbedding(nn.Module):
    """Puts learned numbers of a class next to a latent, [B, Z], [B] int64 -> [B, Z + size].

    Raises UsageError if there are no classes.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        if not classes:
            raise UsageError(
                "method.conditional needs a label for every image, and those of data.source have"
                " none (or its sources have different classes): give a folder with a folder for"
                " each class, or shards with .cls members, or leave method.conditional out"
            )
        self.size = min(len(classes), MOST_EMBEDDED)
        # Standard normal numbers at first, as latents are.
        self.embedding = nn.Embedding(len(classes), self.size)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([latents, self.embedding(labels)], 1)


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


def kernel(sides: Pair, stride: Pair = (2, 2)) -> Pair:
    """The kernel that halves these sides exactly: 4 for an even side, 3 for any other.

    A side of stride 1 keeps its size by a kernel of 3. A transposed convolution with the same
    kernel then gives back the same size.
    """
    height, width = (
        4 if step == 2 and side % 2 == 0 else 3 for side, step in zip(sides, stride, strict=True)
    )
    return height, width


def _start(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, gain: float, fan: float) -> None:
    nn.init.normal_(layer.weight, std=gain / fan**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
