"""What a decoded image looks like: its size and channels, whether it is constant, and a hash that
near copies share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udl_dist.data.images.coding import WHOLE, decode
from udl_dist.data.images.fitting import Pixels
from udl_dist.data.images.headers import MOST_PIXELS, Shape, read_header

SIDE = 32  # pixels of the thumbnail that is hashed


class Looks(NamedTuple):
    """Of one image, as it is stored."""

    width: int
    height: int
    channels: int  # 1: all pixels are gray, 3: some are not
    constant: bool  # one colour all over
    hash: int  # 64 bit; 0: not taken


def look(
    payload: bytes, raw_shape: Shape | None, near: bool, most_pixels: int = MOST_PIXELS
) -> Looks:
    """Decode all of an image, a large one at a part of its size; raise DataError with what is wrong
    if it cannot be.
    """
    if raw_shape is None:
        header = read_header(payload, most_pixels)
        width, height = header.width, header.height
    else:
        _, height, width = raw_shape
    part = 1
    while width * height > part * part * WHOLE:
        part *= 2
    pixels = decode(
        payload, (3, max(1, height // part), max(1, width // part)), "pad", raw_shape, most_pixels
    )
    pixels = pixels[:, 1:-1, 1:-1] if part > 1 else pixels  # rounded sizes may leave a black edge
    gray = bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all())
    constant = bool((pixels == pixels[:, :1, :1]).all())
    hashed = perceptual_hash(pixels) if near and not constant else 0
    return Looks(width, height, 1 if gray else 3, constant, hashed)


def perceptual_hash(pixels: Pixels) -> int:  # [3, H, W]
    """pHash: which of the 8 x 8 lowest frequencies of a 32 x 32 thumbnail are above their median.

    About half of the bits are set whatever the image, so that hashes of unlike images differ in
    about 32 of 64 bits; a difference hash of images that are mostly background has few bits set,
    and unlike ones come close.
    """
    import cv2

    luma = (pixels[0] * 0.299 + pixels[1] * 0.587 + pixels[2] * 0.114).astype(np.float32)
    frequencies = cv2.dct(cv2.resize(luma, (SIDE, SIDE), interpolation=cv2.INTER_AREA))[
        :8, :8
    ].ravel()
    # the first is the mean, which says nothing of what is seen
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
