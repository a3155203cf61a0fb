"""What an image is to us: its shape, how it is made to fit, the formats in which it is kept."""

from __future__ import annotations

from typing import Literal

Shape = tuple[int, int, int]  # C, H, W
Fit = Literal["crop", "pad"]
Format = Literal["png", "jpeg", "webp", "npy", "raw"]
