"""-log p(x|z) of images in nats, summed over pixels, with all constants."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional


# [B, C, H, W] twice -> [B]
def bernoulli(images: Tensor, logits: Tensor) -> Tensor:
    """Of pixels that are black (-1) or white (1); greys count in proportion."""
    return _sum(
        functional.binary_cross_entropy_with_logits(logits, (images + 1) / 2, reduction="none")
    )


# [B, C, H, W] twice, [] or [1] -> [B]
def gaussian(images: Tensor, means: Tensor, logsigma: Tensor) -> Tensor:
    """Of pixels in [-1, 1] with one deviation for all."""
    scaled = (images - means) * (-logsigma).exp()
    return _sum(scaled.square() / 2 + logsigma + math.log(2 * math.pi) / 2)


def _sum(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).sum(1)
