"""The networks of a hierarchical variational autoencoder (VDVAE, Child 2021).

The encoder goes from the whole image to the smallest map, the decoder back up, and in each of its
blocks a latent map is drawn, from what comes from below alone (the prior) or with the encoder's
map of that size (the posterior).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.errors import UsageError
from udl_dist.methods.networks.layers import GAINS, Pair, conv

MOST = 32  # pixels of a side with latent maps, where the settings name none


@dataclass(frozen=True)
class LadderPlan:
    """Sizes of maps from the whole image down, the blocks of each, and channels."""

    sides: tuple[Pair, ...]
    blocks: tuple[int, ...]
    width: int
    latent: int


def plan_of(
    blocks: tuple[int, ...], width: int, latent: int, shape: tuple[int, int, int]
) -> LadderPlan:
    """The plan for images of `shape`; raise UsageError for more sizes than an image has.

    No blocks: 2 of each size up to 32 pixels that is smaller than the image, and 1 of one pixel.
    """
    sides = [shape[1:]]
    while min(sides[-1]) > 1:
        height, side = sides[-1]
        sides.append(((height + 1) // 2, (side + 1) // 2))
    if len(blocks) > len(sides):
        raise UsageError(
            f"method.blocks has {len(blocks)} entries, but an image of {shape[1]}×{shape[2]} can be"
            f" halved {len(sides) - 1} times: give at most {len(sides)}"
        )
    if blocks and not blocks[-1]:
        raise UsageError("method.blocks ends in 0, but a code is the smallest map: give it 1")
    usual = [2 * (number > 0 and max(side) <= MOST) for number, side in enumerate(sides)]
    usual[-1] = 1
    chosen = blocks or tuple(usual)
    return LadderPlan(tuple(sides[: len(chosen)]), chosen, width, latent)


class Bottleneck(nn.Module):
    """[B, inputs, h, w] -> [B, outputs, h, w] by 1×1, 3×3, 3×3 and 1×1, each after GELU.

    Of maps below 3 pixels all are 1×1. `gain` is that of the last layer.
    """

    def __init__(self, inputs: int, outputs: int, side: Pair, gain: float) -> None:
        super().__init__()
        middle = max(1, inputs // 4)
        size = (3, 3) if min(side) > 2 else (1, 1)
        gelu = GAINS["gelu"]
        self.c1 = conv(inputs, middle, (1, 1), gain=gelu)
        self.c2 = conv(middle, middle, size, gain=gelu)
        self.c3 = conv(middle, middle, size, gain=gelu)
        self.c4 = conv(middle, outputs, (1, 1), gain=gain)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in (self.c1, self.c2, self.c3, self.c4):
            hidden = layer(functional.gelu(hidden))
        return hidden


class LadderEncoder(nn.Module):
    """[B, C, H, W] -> a map of each size, [B, width, h, w], the whole image first."""

    def __init__(self, channels: int, plan: LadderPlan) -> None:
        super().__init__()
        # So that a chain of n blocks keeps the variance (Child 2021, section 3.2).
        gain = len(plan.sides) ** -0.5
        self.conv_in = conv(channels, plan.width)
        self.blocks = nn.ModuleList(
            Bottleneck(plan.width, plan.width, side, gain) for side in plan.sides
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        hidden, maps = self.conv_in(images), []
        for number, block in enumerate(self.blocks):
            if number:  # 7 pixels become 4, of which the last is a mean of one row
                hidden = functional.avg_pool2d(hidden, 2, ceil_mode=True, count_include_pad=False)
            hidden = hidden + block(hidden)
            maps.append(hidden)
        return maps


@dataclass(frozen=True)
class LatentMap:
    """What a block draws: the numbers of prior and posterior are two for each of the map."""

    side: Pair
    prior: Tensor  # [B, 2·latent, h, w]: means and log-variances
    posterior: Tensor | None  # the same; None without an image
    latents: Tensor  # [B, latent, h, w]


# Number of the block, prior, posterior -> latents
Choice = Callable[[int, Tensor, Tensor | None], Tensor]


class TopDownBlock(nn.Module):
    """One latent map: its prior, its posterior, and what is made of it."""

    def __init__(self, plan: LadderPlan, side: Pair, gain: float) -> None:
        super().__init__()
        width, latent = plan.width, plan.latent
        # Zero at first, so that the prior is N(0, 1).
        self.prior = Bottleneck(width, 2 * latent + width, side, 0.0)
        self.posterior = Bottleneck(2 * width, 2 * latent, side, 1.0)
        self.projection = conv(latent, width, (1, 1), gain=gain)
        self.residual = Bottleneck(width, width, side, gain)
        self.side = side
        self.split = [2 * latent, width]

    def forward(
        self, number: int, hidden: Tensor, seen: Tensor | None, choose: Choice
    ) -> tuple[LatentMap, Tensor]:
        """The latent map of the block and the map that follows, [B, width, h, w].

        `seen` is the encoder's map; without one there is no posterior.
        """
        prior, more = torch.split(self.prior(hidden), self.split, 1)
        posterior = None
        if seen is not None:
            posterior = self.posterior(torch.cat([hidden, seen], 1))
        latents = choose(number, prior, posterior)
        hidden = hidden + more + self.projection(latents)
        return LatentMap(self.side, prior, posterior, latents), hidden + self.residual(hidden)


class LadderDecoder(nn.Module):
    """The blocks from the smallest map up, and the output, [B, outputs, H, W]."""

    def __init__(self, outputs: int, plan: LadderPlan, gain: float) -> None:
        super().__init__()
        # So that a chain of n blocks keeps the variance (Child 2021, section 3.2).
        small = sum(plan.blocks) ** -0.5
        upwards = list(zip(reversed(plan.sides), reversed(plan.blocks), strict=True))
        self.starts = nn.ParameterList(torch.zeros(1, plan.width, *side) for side, _ in upwards)
        self.levels = nn.ModuleList(
            nn.ModuleList(TopDownBlock(plan, side, small) for _ in range(number))
            for side, number in upwards
        )
        self.conv_out = conv(plan.width, outputs, (1, 1), gain=gain)

    def forward(
        self, count: int, maps: Sequence[Tensor] | None, choose: Choice
    ) -> tuple[list[LatentMap], Tensor]:
        """`count` latent maps of each block, chosen by `choose`, and outputs.

        `maps` are the encoder's of so many images, the whole image first.
        """
        hidden = self.starts[0].expand(count, -1, -1, -1)
        found: list[LatentMap] = []
        for level, blocks in enumerate(self.levels):
            if level:
                height, width = self.starts[level].shape[2:]
                larger = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
                hidden = larger[..., :height, :width] + self.starts[level]
            seen = maps[-1 - level] if maps else None
            for block in blocks:  # type: ignore[attr-defined]
                one, hidden = block(len(found), hidden, seen, choose)
                found.append(one)
        return found, self.conv_out(functional.gelu(hidden))
