"""Training size and channels where nobody gave them: taken from the images of the source.

What `udl pack` wrote says itself how large it is. Of anything else some images are looked at,
spread evenly over the source: their side, the shorter one where the middle is cropped; the median
if they differ; 128 pixels at most. They are colour as soon as one of them has colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import Literal, TypeVar

import numpy as np

from udl_dist.data.images.coding import stored_shape
from udl_dist.data.images.kinds import Fit, Shape
from udl_dist.data.packing.settings import PackSettings
from udl_dist.data.packing.source import Source
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Shards
from udl_dist.errors import DataError

T = TypeVar("T")
LOOKED_AT = 64  # images
LARGEST = 128  # pixels: more costs much and has to be asked for
STEP = 8  # where images differ in size, the size is a multiple of it


def shape_of_index(index: Index, fit: Fit, most_pixels: int) -> Shape:
    """The training shape for the records of an index."""
    if index.about.shape:
        return index.about.shape
    loaded = Shards(index).load(np.array(list(_spread(index.records)), np.int64))
    payloads = [payload for payload in loaded.payloads if payload]
    return _common(
        lambda payload: stored_shape(payload, most_pixels), payloads, fit, str(index.path)
    )


def shape_of_source(source: Source, fit: Fit, most_pixels: int) -> Shape:
    """The training shape for images that are not packed yet."""
    images = source.parts["train"]
    return _common(
        lambda number: images.shape(number, most_pixels), _spread(len(images)), fit, source.name
    )


def settled(settings: PackSettings, source: Source) -> PackSettings:
    """Packing settings whose size and channels are taken from the source where they are 0."""
    if settings.size and settings.channels:
        return settings
    channels, size, _ = shape_of_source(source, settings.fit, settings.most_pixels)
    return replace(
        settings, size=settings.size or size, channels=settings.channels or gray_or_colour(channels)
    )


def gray_or_colour(channels: int) -> Literal[1, 3]:
    """How many channels training has for images of so many."""
    return 1 if channels == 1 else 3


def _spread(count: int) -> Iterable[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int).tolist()))


def _common(look: Callable[[T], Shape], images: Iterable[T], fit: Fit, name: str) -> Shape:
    """One shape for all; what cannot be read is found by whoever reads all of it."""
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
    sides = [min(shape[1:]) if fit == "crop" else max(shape[1:]) for shape in shapes]
    middle = int(median(sides))
    side = middle if len(set(sides)) == 1 else middle // STEP * STEP or middle
    return max(shape[0] for shape in shapes), min(side, LARGEST), min(side, LARGEST)
