"""A drawn crop is its key's alone, fits into any image, and is spread as the papers say."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from udl_dist.data.images.fitting import TRIES, Box, crop_box, crops
from udl_dist.data.loader import order

KEYS = order.keys(7, 3, np.arange(4000, dtype=np.uint64))


def by_hand(chance: np.random.Generator, width: int, height: int, least: float) -> Box:
    """Szegedy et al. 2015 as torchvision spells it, a number at a time, without its rounding to
    whole pixels.
    """
    for _ in range(TRIES):
        area = width * height * chance.uniform(least, 1)
        ratio = math.exp(chance.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= width and high <= height:
            return Box(
                chance.uniform(0, width - wide), chance.uniform(0, height - high), wide, high
            )
    wide = min(width, height * 4 / 3)
    high = min(height, width * 4 / 3)
    return Box((width - wide) / 2, (height - high) / 2, wide, high)


def furthest_apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The two-sample Kolmogorov-Smirnov distance."""
    one, other = one.round(9), other.round(9)  # the same sum in another order is no distance
    both = np.sort(np.concatenate([one, other]))
    first, second = (
        np.searchsorted(np.sort(some), both, "right") / len(some) for some in (one, other)
    )
    return float(np.abs(first - second).max())


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (100, 900)])
def test_crops_are_spread_as_those_drawn_by_hand(width: int, height: int) -> None:
    ours = np.array([crop_box(crop, width, height) for crop in crops(KEYS, 0.2)])
    chance = np.random.default_rng(0)
    theirs = np.array([by_hand(chance, width, height, 0.2) for _ in range(4000)])
    for column in range(4):
        # one in a thousand is further by chance
        assert furthest_apart(ours[:, column], theirs[:, column]) < 0.043
    assert furthest_apart(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 0.043


def test_a_crop_is_its_keys_alone() -> None:
    together, alone = (
        crops(KEYS, 0.3),
        np.concatenate([crops(KEYS[place : place + 1], 0.3) for place in range(50)]),
    )
    assert np.array_equal(together[:50], alone)
    assert np.array_equal(crops(KEYS[::-1], 0.3)[::-1], together)
    assert len(np.unique(together)) > 0.999 * together.size


def test_crops_and_flips_of_a_record_are_unrelated() -> None:
    first = crops(KEYS, 0.0)[:, 0].prod(1)
    mirrored = order.flips(KEYS)
    assert furthest_apart(first[mirrored], first[~mirrored]) < 0.062


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (4096, 4096), (3, 2)])
def test_a_crop_lies_within_its_image_and_keeps_its_share(width: int, height: int) -> None:
    for crop in crops(KEYS[:300], 0.5):
        left, top, wide, high = crop_box(crop, width, height)
        assert left >= 0 and top >= 0 and wide > 0 and high > 0
        assert left + wide <= width + 1e-9 and top + high <= height + 1e-9
        assert 3 / 4 - 1e-9 <= wide / high <= 4 / 3 + 1e-9
