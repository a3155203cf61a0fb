"""Numbers of an array to the bytes of an image, refusing every array whose range leaves two
readings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.coding import Pixels
from udl_dist.errors import DataError

Scale = Callable[[NDArray[Any]], Pixels]
LOOKED_AT = 256  # images at a time


def scale_of(where: str, images: NDArray[Any]) -> Scale:
    """How to turn images of this array into bytes: whole numbers 0 to 255 as they are, 0…1 and -1…1
    stretched.

    Raises DataError if the values fit none of these, or if a whole array holds nothing but whole 0
    and 1.
    """
    if images.dtype == np.bool_:
        return lambda image: image.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind not in "iuf":
        raise DataError(f"{where} has type {images.dtype}: images are whole numbers or floats")
    first = images[:LOOKED_AT]
    if images.dtype == np.uint8 and first.max() > 1:  # bytes are bytes: no need to read all of them
        return np.asarray
    low, high, whole = _range(images)
    if images.dtype.kind in "iu":
        return _whole(where, low, high)
    if low >= 0 and high <= 1:
        return lambda image: np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    if low >= -1 and high <= 1:
        return lambda image: np.rint((image.astype(np.float32) + 1) * 127.5).astype(np.uint8)
    if whole and low >= 0 and high <= 255:
        return lambda image: image.astype(np.uint8)
    raise DataError(
        f"{where} has values from {low:g} to {high:g}: scale them to 0…1, -1…1 or whole numbers"
        " 0…255"
    )


def _whole(where: str, low: float, high: float) -> Scale:
    if low < 0 or high > 255:
        raise DataError(f"{where} has whole numbers from {low:g} to {high:g}: scale them to 0…255")
    if high <= 1:
        raise DataError(
            f"{where} holds whole numbers 0 and 1 alone, black or nearly black: scale them to 0"
            " and 255"
        )
    return lambda image: image.astype(np.uint8)


def _range(images: NDArray[Any]) -> tuple[float, float, bool]:
    """Least and greatest value, NaN if there is one, and whether all are whole; a part of the array
    at a time.
    """
    low, high, whole = np.inf, -np.inf, True
    for start in range(0, len(images), LOOKED_AT):
        part = np.asarray(images[start : start + LOOKED_AT])
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        whole = whole and (part.dtype.kind != "f" or bool((part == np.rint(part)).all()))
    return float(low), float(high), whole
