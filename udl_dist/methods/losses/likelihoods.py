"""-log p(x|z) of images in nats, summed over pixels, with all constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.core import rng
from udl_dist.methods.losses import logistic_mixture
from udl_dist.methods.method import Shape

FLOOR = -6.0  # of log σ: 0.0025, a third of the step between two of 256 levels in [-1, 1]
# log σ is this many times its weight: Adam moves a weight by a learning rate a step, so that from
# 0.5 to the 0.08 of photographs would take 2,000 steps.
SPEED = 10.0


class Deviation(nn.Module):
    """The logarithm of one learned σ for all pixels, [], which starts at `sigma`."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(math.log(sigma) / SPEED))

    def forward(self) -> Tensor:
        # A soft floor (Rybkin et al. 2021): the density of exactly reproduced images is unbounded.
        return FLOOR + functional.softplus(SPEED * self.weight - FLOOR)


def outputs(kind: str, shape: Shape) -> Shape:
    """The shape of what a decoder gives for images of `shape`."""
    channels, height, width = shape
    if kind == "logistic":
        channels = logistic_mixture.outputs(channels)
    return channels, height, width


# [B, C, H, W], [B, D, H, W], [] or [1] -> [B]
def surprise(kind: str, images: Tensor, output: Tensor, logsigma: Tensor | None) -> Tensor:
    """-log p(x|z) of images by a decoder's output; `logsigma` is for the Gaussian."""
    if kind == "bernoulli":
        return bernoulli(images, output)
    if kind == "logistic":
        return logistic_mixture.surprise(images, output)
    assert logsigma is not None
    return gaussian(images, output.tanh(), logsigma)


def mean_image(kind: str, output: Tensor, channels: int) -> Tensor:  # [B, D, H, W] -> [B, C, H, W]
    """The mean of p(x|z), in [-1, 1]."""
    if kind == "logistic":
        return logistic_mixture.mean_image(output, channels)
    # 2 sigmoid(a) - 1 = tanh(a / 2)
    return (output / 2).tanh() if kind == "bernoulli" else output.tanh()


def binarised(images: Tensor, keys: Tensor) -> Tensor:  # [B, C, H, W], [B] int64 -> [B, C, H, W]
    """Each pixel drawn as -1 or 1, white with the probability (x + 1) / 2."""
    draw = rng.uniform(keys, "binarise", tuple(images.shape[1:]))
    return (draw < (images + 1) / 2).to(images.dtype) * 2 - 1


# [B, C, H, W] twice -> [B]
def bernoulli(images: Tensor, logits: Tensor) -> Tensor:
    """Of pixels that are black (-1) or white (1); greys count in proportion."""
    return _sum(
        functional.binary_cross_entropy_with_logits(logits, (images + 1) / 2, reduction="none")
    )


# [B, C, H, W] twice, [] or [1] -> [B]
def gaussian(images: Tensor, means: Tensor, logsigma: Tensor) -> Tensor:
    """Of pixels in [-1, 1] with one deviation for all."""
    # Summed before it is scaled: each pass over the pixels costs as much as a small layer.
    errors = _sum((images - means).square())
    constant = logsigma + math.log(2 * math.pi) / 2
    return errors * (-2 * logsigma).exp() / 2 + images[0].numel() * constant


def _sum(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).sum(1)
