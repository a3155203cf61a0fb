"""Keyed permutations and hashes of whole numbers: the arithmetic under every order and every chance
of the stream.

No list of numbers is ever held, any place can be asked for at once, and equal keys give equal
answers everywhere.
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
    """Spread each 64-bit value over all 64-bit values, one to one: the finaliser of SplitMix64
    (Steele et al. 2014).
    """
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@lru_cache(4096)
def chain(*parts: int) -> int:
    """One well-mixed 64-bit number from several whole numbers; their order matters."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix64(state + np.uint64(GOLDEN) + np.array([part & MASK], np.uint64))
    return int(state[0])


def permuted(places: U64, size: int, key: int) -> U64:
    """Where each place of 0 … size-1 is sent: one to one for any size and key. [B] -> [B]

    A Feistel network over a rectangle of about sqrt(size) rows and columns that just covers all
    places (Black and Rogaway 2002, "generalised Feistel"); what falls outside is sent through again
    until it falls inside.
    """
    # Ten rounds pass every test against a full shuffle; few places need more turns to reach all
    # their orders alike.
    turns = 10 if size > FEW else 32
    return _walked(
        places, np.uint64(size), np.uint64(ceil_root(size)), np.array([key], np.uint64), turns
    )


def permuted_each(places: U64, sizes: U64, keys: U64) -> U64:
    """The same with a size and a key for each place; for sizes of a few thousand. [B], [B], [B] ->
    [B]
    """
    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)  # exact below 2^52
    return _walked(places, sizes, rows, keys, 32)


def ceil_root(size: int) -> int:
    """The least whole number whose square is no less than `size`, at least 1."""
    root = int(np.sqrt(size))
    while root * root < size:
        root += 1
    while root > 1 and (root - 1) * (root - 1) >= size:
        root -= 1
    return max(1, root)


def _walked(
    places: U64, sizes: U64 | np.uint64, rows: U64 | np.uint64, keys: U64, turns: int
) -> U64:
    columns = (sizes + rows - np.uint64(1)) // rows
    # [turns, B or 1]
    rounds = mix64(np.arange(1, turns + 1, dtype=np.uint64)[:, None] * np.uint64(GOLDEN) + keys)
    values = _permute(places, rows, columns, rounds)
    outside = np.flatnonzero(values >= sizes)
    while outside.size:
        values[outside] = _permute(
            values[outside], _of(rows, outside), _of(columns, outside), _of(rounds, outside)
        )
        outside = outside[values[outside] >= _of(sizes, outside)]
    return values


def _of(per_place: U64 | np.uint64, places: NDArray[np.int64]) -> U64 | np.uint64:
    """The entries of some places, of an array that may hold one for all."""
    array = np.asarray(per_place)
    return per_place if array.ndim == 0 or array.shape[-1] == 1 else array[..., places]


def _permute(
    values: U64, rows: U64 | np.uint64, columns: U64 | np.uint64, rounds: U64 | np.uint64
) -> U64:
    """One pass of the Feistel network: row and column are shifted in turns by a keyed hash of the
    other.
    """
    row, column = np.divmod(values, columns)
    for turn, key in enumerate(np.asarray(rounds)):
        if turn % 2:
            column = _shift(column, mix64(row ^ key), columns)
        else:
            row = _shift(row, mix64(column ^ key), rows)
    return row * columns + column


def _shift(values: U64, hashes: U64, size: U64 | np.uint64) -> U64:
    """`values` plus a number below `size` drawn by each hash, modulo `size` (below 2^32)."""
    drawn = ((hashes >> np.uint64(32)) * size) >> np.uint64(32)
    shifted = values + drawn
    return np.where(shifted >= size, shifted - size, shifted)
