"""A mixture of discretised logistics for pixels of 256 levels (Salimans et al. 2017, PixelCNN++).

A pixel is drawn from one of ten components. Within it each channel is a logistic, whose mean
depends linearly on the channels before it, cut at the levels: the mass of a level is the logistic's
between the middles to its neighbours, and the ends take all that lies beyond.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

COMPONENTS = 10
HALF_LEVEL = 1 / 255  # half of the step between two levels, in [-1, 1]
# Of log scales: a logistic narrower than exp(-7) has all its mass in one level, and one wider than
# exp(7) is flat.
LEAST, MOST = -7.0, 7.0
EDGE = 0.999  # beyond this a pixel is at the lowest or the highest level


@dataclass(frozen=True)
class Components:
    """What a decoder says of the pixels; C channels, K components."""

    log_weights: Tensor  # [B, K, H, W]
    means: Tensor  # [B, C, K, H, W], without the part of other channels
    log_scales: Tensor  # [B, C, K, H, W]
    slopes: Tensor  # [B, C·(C - 1)/2, K, H, W]: of channel 1 by 0, of 2 by 0, of 2 by 1 …

    def shifted(self, channel: int, before: Tensor) -> Tensor:
        """The means of a channel given those before it, [B, channel, K or 1, H, W]."""
        first = channel * (channel - 1) // 2
        slopes = self.slopes[:, first : first + channel]
        return self.means[:, channel] + (slopes * before).sum(1)


def outputs(channels: int) -> int:
    """Numbers that a decoder gives for each pixel of so many channels: 30 or, of colours, 100."""
    return COMPONENTS * (1 + 2 * channels + channels * (channels - 1) // 2)


def surprise(images: Tensor, output: Tensor) -> Tensor:  # [B, C, H, W], [B, D, H, W] -> [B]
    """-log p of images in [-1, 1] in nats, summed over pixels: a probability, not a density."""
    channels = images.shape[1]
    found = _components(output, channels)
    spread = images[:, :, None]  # [B, C, 1, H, W]
    logs = found.log_weights
    for channel in range(channels):
        means = found.shifted(channel, spread[:, :channel])
        logs = logs + _log_mass(spread[:, channel], means, found.log_scales[:, channel])
    return -logs.logsumexp(1).flatten(1).sum(1)


def mean_image(output: Tensor, channels: int) -> Tensor:  # [B, D, H, W] -> [B, C, H, W]
    """The mean of the mixture, with the mean of each component put into [-1, 1]."""
    found = _components(output, channels)
    means = found.means[:, :0]
    for channel in range(channels):
        next_one = found.shifted(channel, means).clamp(-1, 1)
        means = torch.cat([means, next_one[:, None]], 1)
    return (found.log_weights.exp()[:, None] * means).sum(2)


def _components(output: Tensor, channels: int) -> Components:
    pairs = channels * (channels - 1) // 2
    rows = output.view(len(output), -1, COMPONENTS, *output.shape[2:])
    logits, means, scales, slopes = torch.split(rows, [1, channels, channels, pairs], 1)
    return Components(logits[:, 0].log_softmax(1), means, scales.clamp(LEAST, MOST), slopes.tanh())


# [B, 1, H, W], [B, K, H, W] twice -> [B, K, H, W]
def _log_mass(pixels: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """The log of the mass of the levels of one channel under each component."""
    sharpness = (-log_scales).exp()
    above = (pixels - means + HALF_LEVEL) * sharpness
    below = (pixels - means - HALF_LEVEL) * sharpness
    up_to_it, from_it_on = functional.logsigmoid(above), functional.logsigmoid(-below)
    # σ(a) - σ(b) = σ(a) σ(-b) (1 - exp(b - a)): exact in the tails, where the article takes the
    # density at the middle because the difference of two sigmoids has no digits left.
    width = torch.log(-torch.expm1(-2 * HALF_LEVEL * sharpness))
    inside = up_to_it + from_it_on + width
    return torch.where(pixels < -EDGE, up_to_it, torch.where(pixels > EDGE, from_it_on, inside))
