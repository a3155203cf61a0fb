"""The layers a network is described with: what comes out of each, how many numbers it learns, what
it costs.

Frozen and free of torch, so that a network is counted before anything is allocated. `modules.py`
builds them.
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
    """One step of a network; what a subclass does not say is: no parameters, no multiplications,
    the same shape.
    """

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return 0

    def outputs(self, inputs: Shape) -> Shape:
        """The shape that comes out for the shape that goes in."""
        return inputs

    def flops(self, inputs: Shape) -> int:
        """Multiply-adds of the linear map, for one image."""
        return 0

    def activations(self, inputs: Shape) -> int:
        """Floats this layer makes for one image; at most these are kept for the gradient."""
        return prod(self.outputs(inputs))


@dataclass(frozen=True)
class Linear(Layer):
    """A dense map; weights start with the deviation `gain / √fan`, so `gain` is the scale of what
    comes out.
    """

    inputs: int
    features: int
    gain: float = 1.0
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
    """A convolution whose padding keeps the size at stride 1, and halves it at stride 2 (see
    `halving`).
    """

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
        return prod(self.kernel) * self.inputs

    def outputs(self, inputs: Shape) -> Shape:
        assert inputs[0] == self.inputs, (inputs, self)
        sides = [
            (side + 2 - kernel) // self.stride + 1
            for side, kernel in zip(inputs[1:], self.kernel, strict=True)
        ]
        return (self.channels, *sides)

    def flops(self, inputs: Shape) -> int:
        return prod(self.kernel) * self.inputs * prod(self.outputs(inputs))


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """The way back of a `Conv` of stride 2 with the same kernel: 4 makes 2n of n pixels, 3 makes 2n
    - 1.
    """

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
        """How many inputs each output sums: at stride 2 only a quarter of the kernel meets a
        pixel.
        """
        return prod(self.kernel) * self.inputs / 4

    def outputs(self, inputs: Shape) -> Shape:
        assert inputs[0] == self.inputs, (inputs, self)
        return (
            self.channels,
            *(2 * side - 4 + kernel for side, kernel in zip(inputs[1:], self.kernel, strict=True)),
        )

    def flops(self, inputs: Shape) -> int:
        return self.parameters * prod(inputs[1:]) - self.channels * self.bias * prod(inputs[1:])


@dataclass(frozen=True)
class Bias(Layer):
    """A learned vector added to what comes in."""

    features: int
    value: float = 0.0

    @property
    def parameters(self) -> int:
        return self.features


@dataclass(frozen=True)
class Norm(Layer):
    """Group or batch normalisation with a learned scale and shift; over features if `flat`, else
    over channels.
    """

    kind: Literal["group", "batch"]
    channels: int
    flat: bool = False

    @property
    def parameters(self) -> int:
        return 2 * self.channels

    @property
    def groups(self) -> int:
        """One for features (that is LayerNorm); else the most that leave 8 channels or more to
        each, at most 32.
        """
        most = 1 if self.flat else min(32, max(1, self.channels // 8))
        return next(groups for groups in range(most, 0, -1) if self.channels % groups == 0)


@dataclass(frozen=True)
class Activation(Layer):
    """A function of each number; `slope` is that of a leaky ReLU below zero."""

    kind: ActivationKind
    slope: float = 0.2


@dataclass(frozen=True)
class Dropout(Layer):
    """Zeros a share of what comes in while training."""

    share: float


@dataclass(frozen=True)
class Reshape(Layer):
    """The same numbers in another shape; `(prod,)` flattens an image."""

    shape: Shape

    def outputs(self, inputs: Shape) -> Shape:
        assert prod(inputs) == prod(self.shape), (inputs, self)
        return self.shape

    def activations(self, inputs: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Residual(Layer):
    """What comes in plus what `body` makes of it (He et al. 2016, pre-activation)."""

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
    """Each layer with the shape that goes into it."""
    pairs = []
    for layer in layers:
        pairs.append((layer, inputs))
        inputs = layer.outputs(inputs)
    return pairs
