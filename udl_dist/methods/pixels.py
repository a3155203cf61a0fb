"""Pixels as bytes, and as the floats in [-1, 1] that methods work on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def floats(pixels: Tensor) -> Tensor:  # uint8 -> float32 in [-1, 1]
    """Bytes from 0 to 255 as training sees them."""
    return pixels.float().mul_(1 / 127.5).sub_(1.0)


def levels(images: Tensor) -> Tensor:  # float in [-1, 1] -> uint8 on the CPU
    """The nearest byte of each pixel."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
