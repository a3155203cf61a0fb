"""The layers that describe a network: the output shape, parameters and cost of each.

They need no torch, so a network is counted before memory is allocated; `modules.py` builds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Shape = tuple[int, ...]  # of one image: (C, H, W) or (features,)
Pair = tuple[int, int]  # height, width

ActivationKind = Literal["relu", "leaky_relu", "silu", "gelu", "elu", "tanh", "sigmoid"]
NormKind = Literal["group", "none", "batch"]


@dataclass(frozen=True)
class Layer:
    """A layer; by default without parameters and multiplications, and of unchanged shape."""

    @property
    def parameters(self) -> int:
        """The count of learned numbers."""
        return 0

    def outputs(self, inputs: Shape) -> Shape:
        """The shape of the output, from that of the input."""
        return inputs

    def flops(self, inputs: Shape) -> int:
        """Multiply-adds of the linear map, for one image."""
        return 0

    def activations(self, inputs: Shape) -> int:
        """Floats in the output for one image; at most these are stored for backward."""
        return prod(self.outputs(inputs))


@dataclass(frozen=True)
class Linear(Layer):
    """A dense map; weights start with std `gain / √fan`, so `gain` is the scale of the output."""

    inputs: int
    features: int
    gain: float = 1.0  # that of the function that follows (see GAINS), or 0 to start at zero
    bias: bool = True

    @property
    def parameters(self) -> int:
        return self.inputs * self.features + self.features * self.bias

    @property
    def fan(self) -> float:
        """How many inputs each output sums."""
        return self.inputs

    def outputs(self, inputs: Shape) -> Shape:
        assert inputs == (self.inputs,), (inputs, self)
        return (self.features,)

    def flops(self, inputs: Shape) -> int:
        return self.inputs * self.features


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution padded by 1: the same size at stride 1, half at stride 2 (see `kernel`)."""

    inputs: int
    channels: int
    kernel: Pair
    stride: int = 1
    gain: float = 1.0
    bias: bool = True

    @property
    def parameters(self) -> int:
        return prod(self.kernel) * self.inputs * self.channels + self.channels * self.bias

    @property
    def fan(self) -> float:
        """How many inputs each output sums."""
        return prod(self.kernel) * self.inputs  # padding, which is zero, counts too

    def outputs(self, inputs: Shape) -> Shape:
        assert inputs[0] == self.inputs, (inputs, self)
        # torch's formula (n + 2 * padding - kernel) // stride + 1, with padding 1.
        sides = [
            (side + 2 - kernel) // self.stride + 1
            for side, kernel in zip(inputs[1:], self.kernel, strict=True)
        ]
        return (self.channels, *sides)

    def flops(self, inputs: Shape) -> int:
        return prod(self.kernel) * self.inputs * prod(self.outputs(inputs))


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """The inverse in size of a `Conv` of stride 2: kernel 4 makes 2n of n pixels, 3 2n - 1."""

    inputs: int
    channels: int
    kernel: Pair
    gain: float = 1.0
    bias: bool = True

    @property
    def parameters(self) -> int:
        return prod(self.kernel) * self.inputs * self.channels + self.channels * self.bias

    @property
    def fan(self) -> float:
        """How many inputs each output sums: at stride 2 a quarter of the kernel meets a pixel."""
        return prod(self.kernel) * self.inputs / 4

    def outputs(self, inputs: Shape) -> Shape:
        assert inputs[0] == self.inputs, (inputs, self)
        # torch's formula (n - 1) * 2 - 2 * padding + kernel, with padding 1.
        sides = (2 * side - 4 + size for side, size in zip(inputs[1:], self.kernel, strict=True))
        return (self.channels, *sides)

    def flops(self, inputs: Shape) -> int:
        # Each input pixel meets the whole kernel.
        return prod(self.kernel) * self.inputs * self.channels * prod(inputs[1:])


@dataclass(frozen=True)
class Bias(Layer):
    """A learned vector added to the input."""

    features: int
    value: float = 0.0  # at the start

    @property
    def parameters(self) -> int:
        return self.features


@dataclass(frozen=True)
class Norm(Layer):
    """Group or batch normalisation with a learned scale and shift; of features if `flat`."""

    kind: Literal["group", "batch"]
    channels: int
    flat: bool = False  # [B, F] instead of [B, C, H, W]

    @property
    def parameters(self) -> int:
        return 2 * self.channels

    @property
    def groups(self) -> int:
        """For features one, which is LayerNorm; else at most 32, of 8 channels or more each."""
        most = 1 if self.flat else min(32, max(1, self.channels // 8))
        return next(groups for groups in range(most, 0, -1) if self.channels % groups == 0)


@dataclass(frozen=True)
class Activation(Layer):
    """A function of each number; `slope` is that of a leaky ReLU below zero."""

    kind: ActivationKind
    slope: float = 0.2


@dataclass(frozen=True)
class Dropout(Layer):
    """Zeros a share of the input while training."""

    share: float


@dataclass(frozen=True)
class Reshape(Layer):
    """The same numbers in another shape; `(prod,)` flattens an image."""

    shape: Shape

    def outputs(self, inputs: Shape) -> Shape:
        assert prod(inputs) == prod(self.shape), (inputs, self)
        return self.shape

    def activations(self, inputs: Shape) -> int:
        return 0  # a view of the same memory


@dataclass(frozen=True)
class Residual(Layer):
    """The input plus the output of `body` (He et al. 2016b, pre-activation)."""

    body: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.body)

    def flops(self, inputs: Shape) -> int:
        return sum(layer.flops(shape) for layer, shape in walk(self.body, inputs))

    def activations(self, inputs: Shape) -> int:
        return prod(inputs) + sum(
            layer.activations(shape) for layer, shape in walk(self.body, inputs)
        )


def walk(layers: tuple[Layer, ...], inputs: Shape) -> list[tuple[Layer, Shape]]:
    """Each layer with the shape of its input."""
    pairs = []
    for layer in layers:
        pairs.append((layer, inputs))
        inputs = layer.outputs(inputs)
    return pairs
