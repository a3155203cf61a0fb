"""Encoders and decoders of residual blocks: the layout and names of diffusers' AutoencoderKL.

With `first_stride = 1` and a spatial latent the keys and the arithmetic are those of diffusers
(Rombach et al. 2022). A flat latent has a dense layer where the spatial one has a convolution. Any
size works: an odd side n is halved to (n - 1) / 2, and the decoder goes back to the very sizes that
the encoder passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from udl_dist.errors import UsageError
from udl_dist.methods.networks.blocks import DownBlock, Level, MidBlock, Style, UpBlock
from udl_dist.methods.networks.layers import (
    SMALL,
    Pair,
    Shape,
    activation,
    conv,
    conv_transpose,
    kernel,
    linear,
)

if TYPE_CHECKING:
    from udl_dist.methods.networks import NetworkSettings

SMALLEST = 8  # pixels: where the levels end by default
WIDTH = 32  # channels of the first level, by default


@dataclass(frozen=True)
class ResNetPlan:
    """What an encoder and its decoder are made of."""

    style: Style
    levels: tuple[Level, ...]  # the largest map first
    attends: bool  # in the middle, between the two blocks at the smallest map
    first_stride: Literal[1, 2] = 1


class ResNetEncoder(nn.Module):
    """[B, C, H, W] -> [B, *outputs]: (Z,) by a dense layer, (C, h, w) by a convolution."""

    def __init__(self, plan: ResNetPlan, shape: tuple[int, int, int], outputs: Shape) -> None:
        super().__init__()
        levels, style = plan.levels, plan.style
        self.smallest = levels[-1].side
        channels = levels[0].channels
        if plan.first_stride == 2:
            self.conv_in = conv(shape[0], channels, kernel((shape[1], shape[2])), 2)
        else:
            self.conv_in = conv(shape[0], channels)
        self.down_blocks = nn.ModuleList()
        for level in levels:
            self.down_blocks.append(DownBlock(style, channels, level))
            channels = level.channels
        self.mid_block = MidBlock(style, channels, plan.attends)
        self.conv_norm_out = style.norm_of(channels)
        self.activation = activation(style.activation)
        self.conv_out = _to_latent(channels, levels[-1].side, outputs)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv_in(images)
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.activation(self.conv_norm_out(self.mid_block(hidden)))
        out: Tensor = self.conv_out(hidden)
        return out


class ResNetDecoder(nn.Module):
    """[B, *inputs] -> [B, C, H, W], unbounded; the output has scale `gain` at first."""

    def __init__(
        self,
        plan: ResNetPlan,
        inputs: Shape,
        shape: tuple[int, int, int],
        gain: float = SMALL,
    ) -> None:
        super().__init__()
        levels, style = plan.levels, plan.style
        self.smallest = levels[-1].side
        channels = levels[-1].channels
        self.conv_in = _from_latent(channels, levels[-1].side, inputs)
        self.mid_block = MidBlock(style, channels, plan.attends)
        self.up_blocks = nn.ModuleList()  # the deepest first
        for level, larger in zip(levels[::-1], [*levels[-2::-1], None], strict=True):
            self.up_blocks.append(UpBlock(style, channels, level, larger))
            channels = level.channels
        self.conv_norm_out = style.norm_of(channels)
        self.activation = activation(style.activation)
        if plan.first_stride == 2:
            self.conv_out: nn.Module = conv_transpose(
                channels, shape[0], kernel((shape[1], shape[2])), gain
            )
        else:
            self.conv_out = conv(channels, shape[0], gain=gain)

    def forward(
        self, latents: Tensor, with_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The image, and if asked the input of the last layer, [B, D, H, W]."""
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        features: Tensor = self.activation(self.conv_norm_out(hidden))
        image: Tensor = self.conv_out(features)
        return (image, features) if with_features else image


def default_levels(side: Pair) -> int:
    """How many levels bring a map from `side` to 8 pixels or fewer, or one side of it to 3."""
    levels = 1
    while max(side) > SMALLEST and min(side) > 3:
        side = (side[0] // 2, side[1] // 2)
        levels += 1
    return levels


def plan_of(settings: NetworkSettings, shape: tuple[int, int, int]) -> ResNetPlan:
    """The plan that settings ask for; raise UsageError if it does not fit the size."""
    side, widths, levels = _first_side(settings, shape), _widths(settings, shape), []
    attends = False
    for place, width in enumerate(widths):
        if place:
            if min(side) < 2:
                raise UsageError(
                    f"network.widths has {len(widths)} entries, but an image of"
                    f" {shape[1]}×{shape[2]} allows {place}: give at most {place}"
                )
            side = (side[0] // 2, side[1] // 2)
        # A range for each entry, so that 16 means the same for 64 px (16) and for 28 (14).
        attends = any(size < 2 * max(side) <= 2 * size for size in settings.attention)
        last = place == len(widths) - 1
        # At the smallest map in the middle alone.
        levels.append(Level(width, side, max(1, settings.depth), last, attends and not last))
    style = Style(settings.norm, settings.activation, groups_of(widths))
    return ResNetPlan(style, tuple(levels), attends, settings.first_stride)


def even_plan(
    widths: tuple[int, ...],
    blocks: int,
    attention: Literal["none", "middle", "smallest"],
    shape: tuple[int, int, int],
) -> ResNetPlan:
    """The plan of an image whose sides f = 2^(n - 1) divides; raise UsageError for another."""
    if not widths:
        raise UsageError("method.widths is empty: give the channels of at least one level")
    last = len(widths) - 1
    f = 2**last
    if any(side % f for side in shape[1:]):
        fitting = " and ".join(str(max(1, round(side / f)) * f) for side in shape[1:])
        raise UsageError(
            f"an image of {shape[1]}×{shape[2]} is not a multiple of f = {f} on each side: set"
            f" data.size to {fitting}, or give fewer method.widths"
        )
    levels = tuple(
        Level(
            width,
            (shape[1] >> place, shape[2] >> place),
            blocks,
            place == last,
            place == last and attention == "smallest",
        )
        for place, width in enumerate(widths)
    )
    return ResNetPlan(Style("group", "silu", groups_of(widths)), levels, attention != "none")


def groups_of(widths: tuple[int, ...]) -> int:
    """Groups of the normalisation: width 128 gives diffusers' 32."""
    most = min(32, max(1, widths[0] // 4))
    return next(n for n in range(most, 0, -1) if not any(width % n for width in widths))


def _widths(settings: NetworkSettings, shape: tuple[int, int, int]) -> tuple[int, ...]:
    if settings.widths:
        return settings.widths
    levels = default_levels(_first_side(settings, shape))
    return tuple(WIDTH * min(2**level, 4) for level in range(levels))


def _first_side(settings: NetworkSettings, shape: tuple[int, int, int]) -> Pair:
    height, width = shape[1:]
    # With stride 2 to what `kernel` halves to.
    return (height, width) if settings.first_stride == 1 else ((height + 1) // 2, (width + 1) // 2)


def _to_latent(channels: int, side: Pair, outputs: Shape) -> nn.Module:
    if len(outputs) == 1:
        return nn.Sequential(nn.Flatten(), linear(channels * prod(side), outputs[0]))
    _refuse_other_size(side, outputs)
    return conv(channels, outputs[0])


def _from_latent(channels: int, side: Pair, inputs: Shape) -> nn.Module:
    if len(inputs) == 1:
        start = (channels, *side)
        return nn.Sequential(linear(inputs[0], prod(start)), nn.Unflatten(1, start))
    _refuse_other_size(side, inputs)
    return conv(inputs[0], channels)


def _refuse_other_size(side: Pair, latent: Shape) -> None:
    if latent[1:] != side:
        raise UsageError(
            f"a latent of {latent[1]}×{latent[2]} does not fit the network, whose smallest map is"
            f" {side[0]}×{side[1]}: change method.network.widths"
        )
