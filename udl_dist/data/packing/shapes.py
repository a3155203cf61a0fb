"""Training size and channels where the settings give none: those of the images.

`udl pack` records its size. Of other sources a sample is examined: the median of the shorter sides
(of the longer ones for `pad`), 128 pixels at most; colour if any image of the sample has colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import Literal, TypeVar

import numpy as np

from udl_dist.data.images.coding import stored_shape
from udl_dist.data.images.headers import Fit, Shape
from udl_dist.data.packing.sources import Source
from udl_dist.data.settings import DataSettings, PackSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Shards
from udl_dist.errors import DataError

T = TypeVar("T")
# Spread over the source: all sizes would mean reading all images.
SAMPLE = 64  # images
LARGEST = 128  # pixels: more is expensive and must be asked for
STEP = 8  # where images differ in size, the size is a multiple of it


def shape_of_index(index: Index, settings: DataSettings) -> Shape:
    """The training shape for the records of an index."""
    # Packed by `udl pack`: all images have this shape.
    if index.about.shape:
        return index.about.shape
    loaded = Shards(index).load(np.array(_spread(index.records), np.int64))
    # Damaged records are empty here, and are reported when training reads them.
    payloads = [payload for payload in loaded.payloads if payload]
    return _common(
        lambda payload: stored_shape(payload, settings.most_pixels),
        payloads,
        settings.fit,
        str(index.path),
    )


def shape_of_source(source: Source, settings: PackSettings | DataSettings) -> Shape:
    """The training shape for images that are not packed yet."""
    images = source.parts["train"]
    return _common(
        lambda number: images.shape(number, settings.most_pixels),
        _spread(len(images)),
        settings.fit,
        source.name,
    )


def with_shape(settings: PackSettings, source: Source) -> PackSettings:
    """Packing settings with size and channels of the source where they are 0."""
    if settings.size and settings.channels:
        return settings
    channels, size, _ = shape_of_source(source, settings)
    return replace(
        settings, size=settings.size or size, channels=settings.channels or gray_or_colour(channels)
    )


def gray_or_colour(channels: int) -> Literal[1, 3]:
    return 1 if channels == 1 else 3


def _spread(count: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int).tolist()))


def _common(look: Callable[[T], Shape], images: Iterable[T], fit: Fit, name: str) -> Shape:
    """One shape for all; damaged images are skipped here and reported when all are read."""
    shapes, fault = list[Shape](), "there is no image"
    for image in images:
        try:
            shapes.append(look(image))
        except DataError as error:
            fault = str(error)
    if not shapes:
        raise DataError(
            f"{name!r}: none of the images looked at can be read (the last {fault}): give size and"
            " channels"
        )
    # The side that fills the square, so that half of the images need no enlarging.
    sides = [min(shape[1:]) if fit == "crop" else max(shape[1:]) for shape in shapes]
    middle = int(median(sides))
    side = middle if len(set(sides)) == 1 else middle // STEP * STEP or middle
    return max(shape[0] for shape in shapes), min(side, LARGEST), min(side, LARGEST)
