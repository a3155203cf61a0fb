"""Random resized crops, drawn from a key per record: the same key gives the same crop on any rank,
reader or batch.

As in Szegedy et al. 2015 (and torchvision's RandomResizedCrop): the area is uniform in [least, 1]
of the image, the logarithm of width / height uniform in [log 3/4, log 4/3], ten tries to fit in,
else the largest middle part of a permitted ratio. Knows no pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from udl_dist.core import permutation

F64 = NDArray[np.float64]

CROP = 0x63726F70  # the kind of chance; see `order`
TRIES = 10
RATIO = 4 / 3


class Box(NamedTuple):
    """A part of an image in its pixels, with fractions."""

    left: float
    top: float
    width: float
    height: float


def crops(keys: NDArray[np.int64], least_area: float) -> F64:  # [B] -> [B, TRIES + 1, 2]
    """Draw a crop for each key, without knowing the image: width and height of each try where the
    image's area is 1, and last how far the crop goes to the right and down, of the room that there
    is (0 … 1).
    """
    places = np.arange(1, 2 * TRIES + 3, dtype=np.uint64) * np.uint64(permutation.GOLDEN)
    seeds = permutation.mix64(keys.view(np.uint64) ^ np.uint64(permutation.chain(CROP)))
    drawn: F64 = (permutation.mix64(seeds[:, None] + places) >> np.uint64(11)).astype(
        np.float64
    ) * 2.0**-53
    drawn = drawn.reshape(len(keys), TRIES + 1, 2)
    tries = drawn[:, :TRIES]
    sides = np.sqrt(least_area + (1 - least_area) * tries[..., 0])
    stretch = RATIO ** (tries[..., 1] - 0.5)  # the square root of width / height
    drawn[:, :TRIES] = np.stack([sides * stretch, sides / stretch], -1)
    return drawn


def crop_box(crop: F64, width: int, height: int) -> Box:  # [TRIES + 1, 2] ->
    """What a drawn crop takes of an image of this size."""
    side = math.sqrt(width * height)
    right, down = crop[TRIES].tolist()
    for try_width, try_height in (crop[:TRIES] * side).tolist():
        if try_width <= width and try_height <= height:
            return Box(
                right * (width - try_width), down * (height - try_height), try_width, try_height
            )
    return _middle(width, height)


def _middle(width: int, height: int) -> Box:
    wide, high = min(width, height * RATIO), min(height, width * RATIO)
    return Box((width - wide) / 2, (height - high) / 2, wide, high)
