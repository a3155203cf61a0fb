"""Builds described layers as initialised torch modules; only this file of networks/ needs torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udl_dist.methods.networks import layers as described

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Residual(nn.Module):
    """The sum of the input and the body's output."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = inputs + self.body(inputs)
        return out


class Bias(nn.Module):
    """A learned vector, added."""

    def __init__(self, features: int, value: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((features,), value))

    def forward(self, inputs: Tensor) -> Tensor:  # [..., features] -> the same
        return inputs + self.bias


def chain(layers: tuple[described.Layer, ...]) -> nn.Sequential:
    """The layers in sequence."""
    return nn.Sequential(*(build(layer) for layer in layers))


def build(layer: described.Layer) -> nn.Module:
    """One layer, initialised from torch's current random state."""
    # A description keeps its positions: these patterns match fields by their order.
    match layer:
        case described.Linear(inputs, features, _, bias):
            return _start(nn.Linear(inputs, features, bias), layer)
        case described.Conv(inputs, channels, kernel, stride, _, bias):
            return _start(nn.Conv2d(inputs, channels, kernel, stride, 1, bias=bias), layer)
        case described.ConvTranspose(inputs, channels, kernel, _, bias):
            # Padding 1, so that kernel 4 doubles a size (see `layers.ConvTranspose`).
            return _start(nn.ConvTranspose2d(inputs, channels, kernel, 2, 1, bias=bias), layer)
        # GroupNorm takes [B, F] as well as [B, C, H, W]; with one group it is LayerNorm.
        case described.Norm("group", channels):
            return nn.GroupNorm(layer.groups, channels)
        case described.Norm("batch", channels, flat):
            return nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)
        case described.Activation("leaky_relu", slope):
            return nn.LeakyReLU(slope)
        case described.Activation(kind):
            return ACTIVATIONS[kind]()
        case described.Residual(body):
            return Residual(chain(body))
        case described.Reshape(shape):
            return nn.Flatten() if len(shape) == 1 else nn.Unflatten(1, shape)
        case described.Dropout(share):
            return nn.Dropout(share)
        case described.Bias(features, value):
            return Bias(features, value)
    raise AssertionError(layer)


def _start(
    module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d,
    layer: described.Linear | described.Conv | described.ConvTranspose,
) -> nn.Module:
    # He et al. 2015, eq. 10, with the true number of inputs that each output sums: torch takes that
    # of a transposed convolution from the wrong axis and ignores its stride.
    nn.init.normal_(module.weight, std=layer.gain / layer.fan**0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
