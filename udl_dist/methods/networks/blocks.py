"""Blocks of residual networks, with the names and the arithmetic of diffusers' AutoencoderKL."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from udl_dist.methods.networks.layers import (
    GAINS,
    ActivationKind,
    NormKind,
    Pair,
    activation,
    conv,
    linear,
    norm,
)


@dataclass(frozen=True)
class Style:
    """What all blocks of a network have alike."""

    norm: NormKind
    activation: ActivationKind
    groups: int  # of group normalisation: one number for all widths, as diffusers has

    def norm_of(self, channels: int) -> nn.Module:
        if self.norm == "group":
            return nn.GroupNorm(self.groups, channels, eps=1e-6)  # diffusers' epsilon
        return norm(self.norm, channels)


@dataclass(frozen=True)
class Level:
    """The maps of one size, and how many blocks they pass."""

    channels: int
    side: Pair
    blocks: int
    last: bool
    attends: bool = False  # after each block


class Block(nn.Module):
    """[B, C, h, w] -> [B, D, h, w]: norm, activation, convolution, twice, and a shortcut."""

    def __init__(self, style: Style, inputs: int, channels: int) -> None:
        super().__init__()
        self.norm1 = style.norm_of(inputs)
        self.conv1 = conv(inputs, channels, gain=GAINS[style.activation])
        self.norm2 = style.norm_of(channels)
        # The last layer of a block starts at zero, so a deep network starts as a shallow one
        # (Fixup, Zhang et al. 2019).
        self.conv2 = conv(channels, channels, gain=0.0)
        self.activation = activation(style.activation)
        if inputs != channels:
            self.conv_shortcut: nn.Module = conv(inputs, channels, (1, 1))
        else:
            self.conv_shortcut = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv1(self.activation(self.norm1(inputs)))
        hidden = self.conv2(self.activation(self.norm2(hidden)))
        out: Tensor = self.conv_shortcut(inputs) + hidden
        return out


class Attention(nn.Module):
    """[B, C, h, w] -> the same: each pixel gathers from all others, by one head.

    torch's fused kernel has no second derivative: do not penalise gradients through it.
    """

    def __init__(self, style: Style, channels: int) -> None:
        super().__init__()
        self.group_norm = style.norm_of(channels)
        self.to_q = linear(channels, channels)
        self.to_k = linear(channels, channels)
        self.to_v = linear(channels, channels)
        self.to_out = nn.ModuleList([linear(channels, channels, gain=0.0)])

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = self.group_norm(inputs).flatten(2).transpose(1, 2)  # [B, h·w, C]
        # A dimension of one head; the scale is C^(-1/2).
        query, key, value = (
            project(pixels).unsqueeze(1) for project in (self.to_q, self.to_k, self.to_v)
        )
        found = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        out: Tensor = inputs + self.to_out[0](found).transpose(1, 2).reshape(inputs.shape)
        return out


class DownBlock(nn.Module):
    """The blocks of a level, and but for the last a convolution that halves the map."""

    def __init__(self, style: Style, inputs: int, level: Level) -> None:
        super().__init__()
        channels = [inputs] + [level.channels] * level.blocks
        self.resnets, self.attentions = _resnets(style, channels, level)
        self.downsamplers = nn.ModuleList([] if level.last else [_Down(level.channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = _through(self.resnets, self.attentions, hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
        return hidden


class UpBlock(nn.Module):
    """The blocks of a level and a convolution that brings the map to the size of `larger`."""

    def __init__(self, style: Style, inputs: int, level: Level, larger: Level | None) -> None:
        super().__init__()
        channels = [inputs] + [level.channels] * (level.blocks + 1)
        self.resnets, self.attentions = _resnets(style, channels, level)
        self.upsamplers = nn.ModuleList([_Up(level.channels, larger.side)] if larger else [])

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = _through(self.resnets, self.attentions, hidden)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden


class MidBlock(nn.Module):
    """Two blocks at the smallest map, with attention between them where the settings say so."""

    def __init__(self, style: Style, channels: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Block(style, channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(style, channels)] if attends else [])

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.resnets[0](hidden)
        for attention in self.attentions:
            hidden = attention(hidden)
        out: Tensor = self.resnets[1](hidden)
        return out


class _Down(nn.Module):
    """Halves a map, an odd side n to (n - 1) / 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, stride=2)
        self.conv.padding = (0, 0)  # `forward` pads

    def forward(self, hidden: Tensor) -> Tensor:
        # On the right and below only, as LDM does: an even side needs it, an odd one ignores it.
        out: Tensor = self.conv(functional.pad(hidden, (0, 1, 0, 1)))
        return out


class _Up(nn.Module):
    """Brings a map to `side`; unlike a transposed convolution this leaves no chequerboard."""

    def __init__(self, channels: int, side: Pair) -> None:
        super().__init__()
        self.side = side
        self.conv = conv(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        # "nearest-exact" keeps an odd map centred; of a doubling it is "nearest".
        larger = functional.interpolate(hidden, size=self.side, mode="nearest-exact")
        out: Tensor = self.conv(larger)
        return out


def _resnets(
    style: Style, channels: list[int], level: Level
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The blocks between consecutive `channels`, and the attentions after them, if any."""
    pairs = pairwise(channels)
    resnets = nn.ModuleList([Block(style, *pair) for pair in pairs])
    count = len(resnets) if level.attends else 0
    return resnets, nn.ModuleList([Attention(style, level.channels) for _ in range(count)])


def _through(resnets: nn.ModuleList, attentions: nn.ModuleList, hidden: Tensor) -> Tensor:
    for place, block in enumerate(resnets):
        hidden = block(hidden)
        if len(attentions):
            hidden = attentions[place](hidden)
    return hidden
