"""Images as plain rows of numbers: what codes must beat."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

LARGEST_SIDE = 32  # larger images are averaged


def pixels(images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, F]
    """The pixels of an image, or those of a smaller one."""
    sides = (min(LARGEST_SIDE, images.shape[2]), min(LARGEST_SIDE, images.shape[3]))
    return functional.adaptive_avg_pool2d(images, sides).flatten(1)
