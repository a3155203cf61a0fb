"""Rasters into rows of a batch: cropped, resized, channels first; and the random crops.

Shrinking is antialiased as Pillow's bilinear filter does it, a triangle as wide as the step. Here
that is a blur of three taps and a linear interpolation, which together have the triangle's
variance, in vector code: twice as fast, and within 43 to 50 dB of Pillow's pixels. Steps above two,
which no scaled decode leaves, go through Pillow itself.

Random resized crops are drawn from a key per record: the same key gives the same crop on any rank,
thread or batch. As in Szegedy et al. 2015 (and torchvision's RandomResizedCrop), the area is
uniform in [least, 1] of the image, the logarithm of width / height uniform in [log 3/4, log 4/3];
after ten misfits it is the largest centred part with a permitted ratio.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from udl_dist.core import rng
from udl_dist.data.images.decoders import Decoded, Raster, opencv
from udl_dist.data.images.headers import Fit, Shape

F64 = NDArray[np.float64]
Pixels = NDArray[np.uint8]  # [C, H, W]: an image, or a row of a batch

# "crop" in ASCII.
CROP = 0x63726F70  # the kind of chance; see `order`
# As torchvision's, whose distribution of crops this has.
TRIES = 10
RATIO = 4 / 3
# Three taps and the interpolation reach two pixels to each side, the triangle one step.
LONGEST_STEP = 2.0  # pixels of the raster per pixel of the row


class Box(NamedTuple):
    """A part of an image in its pixels, with fractions."""

    left: float
    top: float
    width: float
    height: float


class Placement(NamedTuple):
    """A part of an image and the size in pixels that it gets, centred in its row."""

    box: Box
    width: int
    height: int

    @property
    def least(self) -> float:
        """The smallest scale at which the image holds as many pixels as are wanted."""
        return max(self.width / self.box.width, self.height / self.box.height)

    def within(self, row: Pixels) -> Pixels:
        """The centred part of a row that the image fills."""
        top, left = (row.shape[1] - self.height) // 2, (row.shape[2] - self.width) // 2
        return row[:, top : top + self.height, left : left + self.width]


def crops(keys: NDArray[np.int64], least_area: float) -> F64:  # [B] -> [B, TRIES + 1, 2]
    """Draw a crop for each key, whatever the image: width and height of each try for an image of
    area 1, and last the offsets to the right and down, as parts (0 … 1) of the free space.
    """
    # splitmix64 of each key: draw n is mix64(seed + n * GOLDEN), all in one array.
    places = np.arange(1, 2 * TRIES + 3, dtype=np.uint64) * np.uint64(rng.GOLDEN)
    seeds = rng.mix64(keys.view(np.uint64) ^ np.uint64(rng.chain(CROP)))
    # The upper 53 bits are what a float64 holds exactly: uniform in [0, 1).
    drawn: F64 = (rng.mix64(seeds[:, None] + places) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    drawn = drawn.reshape(len(keys), TRIES + 1, 2)
    tries = drawn[:, :TRIES]
    # Of a square of that area; the ratio then stretches it without changing the area.
    sides = np.sqrt(least_area + (1 - least_area) * tries[..., 0])
    stretch = RATIO ** (tries[..., 1] - 0.5)  # the square root of width / height
    drawn[:, :TRIES] = np.stack([sides * stretch, sides / stretch], -1)
    return drawn


def crop_box(crop: F64, width: int, height: int) -> Box:  # [TRIES + 1, 2] ->
    """The box of a drawn crop in an image of this size."""
    # From an image of area 1 to this one.
    side = math.sqrt(width * height)
    right, down = crop[TRIES].tolist()
    for try_width, try_height in (crop[:TRIES] * side).tolist():
        # The first try that fits, as in torchvision.
        if try_width <= width and try_height <= height:
            return Box(
                right * (width - try_width), down * (height - try_height), try_width, try_height
            )
    # Ten misfits happen only to very wide or high images.
    wide, high = min(width, height * RATIO), min(height, width * RATIO)
    return Box((width - wide) / 2, (height - high) / 2, wide, high)


def plan(width: int, height: int, row: Pixels, fit: Fit, crop: F64 | None = None) -> Placement:
    """How an image fills a row: its centre, or all of it on black (`pad`), or a drawn crop."""
    # A drawn crop is stretched to the square, as torchvision's: ratio is part of the augmentation.
    high, wide = row.shape[1:]
    if crop is not None:
        return Placement(crop_box(crop, width, height), wide, high)
    if fit == "pad":
        scale = min(wide / width, high / height)
        return Placement(
            # At least one pixel: a line of 1 x 5000 pixels would round to none.
            Box(0, 0, width, height),
            max(1, round(width * scale)),
            max(1, round(height * scale)),
        )
    cut_width, cut_height = min(width, height * wide / high), min(height, width * high / wide)
    # whole pixels: then a crop of the row's size is copied exactly
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    return Placement(Box(left, top, cut_width, cut_height), wide, high)


def as_raster(pixels: Pixels) -> Raster:  # [C, H, W] -> [H, W] or [H, W, 3], a view
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def fit_pixels(pixels: Pixels, shape: Shape, fit: Fit) -> Pixels:  # [C, H, W] -> [C, H, W]
    """Bring pixels of one or three channels to the training shape, exactly, by Pillow."""
    from PIL import Image

    if pixels.shape == shape:
        return pixels
    # Gray as colour: three equal channels, exactly.
    if pixels.shape == (1, *shape[1:]):
        return np.repeat(pixels, 3, axis=0)
    raster = np.asarray(
        Image.fromarray(np.ascontiguousarray(as_raster(pixels))).convert(
            "L" if shape[0] == 1 else "RGB"
        )
    )
    # Zeros are the black border of `pad`.
    row = np.zeros(shape, np.uint8)
    planned = plan(raster.shape[1], raster.shape[0], row, fit)
    part = _by_pillow(raster, planned.box, planned.width, planned.height)
    copy_into(planned.within(row), part)
    return row


def copy_into(row: Pixels, raster: Raster) -> None:
    """Copy a raster of the row's size into it; gray becomes equal channels, and colour gray."""
    if raster.ndim == 3 and row.shape[0] == 1:
        raster = opencv().cvtColor(raster, opencv().COLOR_RGB2GRAY)
    row[...] = raster if raster.ndim == 2 else raster.transpose(2, 0, 1)


def fit_into(row: Pixels, decoded: Decoded, planned: Placement) -> None:
    """Write the planned part of a decoded image into its row."""
    raster, scale, left, top = decoded
    if raster.ndim == 3 and row.shape[0] == 1:
        raster = opencv().cvtColor(raster, opencv().COLOR_RGB2GRAY)
    box, width, height = planned
    window = Box(
        # From pixels of the whole image to those of the raster, which may be smaller.
        left + scale * box.left,
        top + scale * box.top,
        scale * box.width,
        scale * box.height,
    )
    # The usual case, without a border: straight into the row.
    if (height, width) == row.shape[1:]:
        return _resize(row, raster, window)
    part = np.empty((row.shape[0], height, width), np.uint8)
    _resize(part, raster, window)
    row[...] = 0
    planned.within(row)[...] = part


def _resize(row: Pixels, raster: Raster, window: Box) -> None:
    left, top = int(window.left), int(window.top)
    _, height, width = row.shape
    # Whole pixels of the right size: copied, not interpolated, so stored pixels come out exactly.
    if window == (left, top, width, height):
        return copy_into(row, raster[top : top + height, left : left + width])
    if max(window.width / width, window.height / height) > LONGEST_STEP:
        return copy_into(row, _by_pillow(raster, window, width, height))
    _interpolate(row, raster, window)


def _by_pillow(raster: Raster, window: Box, width: int, height: int) -> Raster:
    from PIL import Image

    right, bottom = window.left + window.width, window.top + window.height
    # Rounding may put an edge a hair outside of the raster, which Pillow refuses.
    box = (window.left, window.top, min(right, raster.shape[1]), min(bottom, raster.shape[0]))
    return np.asarray(
        Image.fromarray(raster).resize((width, height), Image.Resampling.BILINEAR, box=box)
    )


def _interpolate(row: Pixels, raster: Raster, window: Box) -> None:
    cv2 = opencv()
    channels, height, width = row.shape
    left, top = max(0, int(window.left) - 2), max(0, int(window.top) - 2)  # a margin for the taps
    raster = raster[
        top : int(window.top + window.height) + 3, left : int(window.left + window.width) + 3
    ]
    across, down = window.width / width, window.height / height
    # Enlarging needs no blur: plain linear interpolation is Pillow's bilinear filter then.
    if max(across, down) > 1:
        raster = cv2.sepFilter2D(
            raster, -1, _taps(across), _taps(down), borderType=cv2.BORDER_REPLICATE
        )
    # Pixel x of the row has its centre at x + 1/2, and so has a pixel of the raster.
    matrix = np.array(
        [
            [across, 0, window.left - left + across / 2 - 0.5],
            [0, down, window.top - top + down / 2 - 0.5],
        ]
    )
    # Gray is warped straight into the row; of colour OpenCV makes [H, W, C], split into it below.
    flat = row[0] if raster.ndim == 2 else None
    made = cv2.warpAffine(
        raster,
        matrix,
        (width, height),
        dst=flat,
        borderMode=cv2.BORDER_REPLICATE,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    if flat is None:
        # Channels first without a transposed copy.
        cv2.split(made, list(row))
    elif channels > 1:
        row[1:] = flat


def _taps(step: float) -> NDArray[np.float32]:
    """Three taps whose variance plus linear interpolation's, 1/6, is a triangle's, step² / 6."""
    # Variance of the taps [s, 1 - 2s, s] is 2s: 2s + 1/6 = step^2 / 6. No blur for steps below 1.
    side = max(0.0, (step * step - 1) / 12)
    return np.array([side, 1 - 2 * side, side], np.float32)
