"""Keyed permutations and hashes of whole numbers, for the order and the augmentation of images.

No list is stored, any place can be computed alone, and equal keys give equal results everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
FEW = 2**12


def mix64(values: U64) -> U64:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection that mixes all bits."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@lru_cache(4096)
def chain(*parts: int) -> int:
    """A 64-bit hash of several whole numbers in their order."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix64(state + np.uint64(GOLDEN) + np.array([part & MASK], np.uint64))
    return int(state[0])


def permuted(places: U64, size: int, key: int) -> U64:
    """The image of each place in a keyed permutation of 0 … size-1. [B] -> [B]

    A Feistel network over a rectangle of about sqrt(size) rows and columns that just covers all
    places (Black and Rogaway 2002, "generalised Feistel"); results outside of it are permuted again
    until they are inside.
    """
    # Ten rounds pass every test against a full shuffle; for few places all orders are equally
    # likely only after more.
    rounds = 10 if size > FEW else 32
    return _walked(
        places, np.uint64(size), np.uint64(ceil_root(size)), np.array([key], np.uint64), rounds
    )


def permuted_each(places: U64, sizes: U64, keys: U64) -> U64:
    """The same with a size (up to a few thousand) and a key for each place. 3 x [B] -> [B]"""
    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)  # exact below 2^52
    return _walked(places, sizes, rows, keys, 32)


def ceil_root(size: int) -> int:
    """The square root of `size`, rounded up, at least 1."""
    root = int(np.sqrt(size))
    while root * root < size:
        root += 1
    while root > 1 and (root - 1) * (root - 1) >= size:
        root -= 1
    return max(1, root)


def _walked(
    places: U64, sizes: U64 | np.uint64, rows: U64 | np.uint64, keys: U64, count: int
) -> U64:
    columns = (sizes + rows - np.uint64(1)) // rows
    # [count, B or 1]
    rounds = mix64(np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(GOLDEN) + keys)
    values = _permute(places, rows, columns, rounds)
    outside = np.flatnonzero(values >= sizes)
    while outside.size:
        values[outside] = _permute(
            values[outside], _of(rows, outside), _of(columns, outside), _of(rounds, outside)
        )
        outside = outside[values[outside] >= _of(sizes, outside)]
    return values


def _of(per_place: U64 | np.uint64, places: NDArray[np.int64]) -> U64 | np.uint64:
    """The entries for some places of an array that may have one entry for all."""
    array = np.asarray(per_place)
    return per_place if array.ndim == 0 or array.shape[-1] == 1 else array[..., places]


def _permute(
    values: U64, rows: U64 | np.uint64, columns: U64 | np.uint64, rounds: U64 | np.uint64
) -> U64:
    """One pass of the Feistel network: hashes of the column shift the row, and vice versa."""
    row, column = np.divmod(values, columns)
    for number, key in enumerate(np.asarray(rounds)):
        if number % 2:
            column = _shift(column, mix64(row ^ key), columns)
        else:
            row = _shift(row, mix64(column ^ key), rows)
    return row * columns + column


def _shift(values: U64, hashes: U64, size: U64 | np.uint64) -> U64:
    """`values` plus a number below `size` drawn by each hash, modulo `size` (below 2^32)."""
    drawn = ((hashes >> np.uint64(32)) * size) >> np.uint64(32)
    shifted = values + drawn
    return np.where(shifted >= size, shifted - size, shifted)
