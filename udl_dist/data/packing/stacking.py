"""Three gray images as the colours of one: of digits, a set of 1,000 modes (Metz et al. 2017)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from udl_dist.core import rng
from udl_dist.data.images.fitting import Pixels
from udl_dist.data.images.headers import MOST_PIXELS, Fit, Shape
from udl_dist.data.packing.sources import Images, Source
from udl_dist.errors import UsageError

CHANNELS = 3
MOST_CLASSES = 21  # of the gray images: 9,261 of the stacked ones


class Stacked:
    """As many images as there are gray ones; of K classes a, b, c the class is aK² + bK + c.

    The first colour of image i is gray image i; for the others a keyed permutation chooses, so that
    each gray image is in as many.
    """

    def __init__(self, images: Images, classes: int, seed: int) -> None:
        self.images, self.classes = images, classes
        places, count = np.arange(len(images), dtype=np.uint64), len(images)
        drawn = [
            rng.permuted(places, count, rng.chain(seed, channel)) for channel in range(1, CHANNELS)
        ]
        self.members = np.stack([places, *drawn], 1).astype(np.int64)  # [N, 3]

    def __len__(self) -> int:
        return len(self.images)

    def key(self, number: int) -> str:
        return self.images.key(number)

    def label(self, number: int) -> int:
        label = 0
        for member in self.members[number].tolist():
            one = self.images.label(member)
            if one < 0:
                return -1
            label = label * self.classes + one
        return label

    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        gray = (1, *shape[1:])
        members = self.members[number].tolist()
        return np.concatenate(
            [self.images.pixels(member, gray, fit, most_pixels) for member in members]
        )

    def shape(self, number: int, most_pixels: int) -> Shape:
        return CHANNELS, *self.images.shape(number, most_pixels)[1:]


def stacked(source: Source, seed: int) -> Source:
    """The source with three images as the colours of each; raise UsageError for many classes."""
    classes = len(source.classes)
    if classes > MOST_CLASSES:
        raise UsageError(
            f"--stack makes {classes:,}³ classes of {source.name!r}: give a source of at most"
            f" {MOST_CLASSES} classes"
        )
    between = "" if all(len(name) == 1 for name in source.classes) else "-"
    names = tuple(between.join(three) for three in product(source.classes, repeat=CHANNELS))
    parts = {part: Stacked(images, classes, seed) for part, images in source.parts.items()}
    return replace(source, classes=names if classes else (), parts=parts)
