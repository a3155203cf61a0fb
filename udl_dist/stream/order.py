"""In which order records are seen, and the chance that each carries: pure functions of (seed, epoch, position).

No list of all records is ever held: place p of an epoch is sent through a keyed permutation of 0 … n-1. Knows plain
numbers, and no record, file or process.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
# One constant per kind of chance, so that no two kinds are ever correlated.
ORDER, KEYS, RECORD_KEYS, FLIP, HELD_OUT = 0x6F72646572, 0x6B657973, 0x7265636B, 0x666C6970, 0x68656C64


def mix64(values: U64) -> U64:
    """Spread each 64-bit value over all 64-bit values, one to one: the finaliser of SplitMix64 (Steele et al. 2014)."""
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


def record_at(seed: int, epoch: int, places: I64, records: int) -> I64:
    """Which record stands at each place (0 … records-1) of an epoch: every record exactly once. [B] -> [B]

    A Feistel network over a rectangle of about sqrt(records) rows and columns that just covers all records (Black and
    Rogaway 2002, "generalised Feistel"); what falls outside is sent through again until it falls inside.
    """
    rows = _ceil_root(records)
    columns = -(-records // rows)
    # Ten rounds pass every test against a full shuffle; few records need more turns to reach all their orders alike.
    keys = mix64(np.arange(1, (10 if records > 2**12 else 32) + 1, dtype=np.uint64) * np.uint64(GOLDEN)
                 + np.uint64(chain(ORDER, seed, epoch)))  # fmt: skip
    values = _permute(places.astype(np.uint64), rows, columns, keys)
    outside = np.flatnonzero(values >= np.uint64(records))
    while outside.size:
        values[outside] = _permute(values[outside], rows, columns, keys)
        outside = outside[values[outside] >= np.uint64(records)]
    return values.astype(np.int64)


def keys(seed: int, epoch: int, key_hash: U64) -> I64:
    """A random number for each record that changes with the epoch. [B] -> [B]"""
    return mix64(key_hash ^ np.uint64(chain(KEYS, seed, epoch))).view(np.int64)


def record_keys(seed: int, key_hash: U64) -> I64:
    """A random number for each record that stays the same in every epoch. [B] -> [B]"""
    return mix64(key_hash ^ np.uint64(chain(RECORD_KEYS, seed))).view(np.int64)


def flips(keys: I64) -> NDArray[np.bool_]:
    """Which images are mirrored: half of them, by their keys. [B] -> [B]"""
    return (mix64(keys.view(np.uint64) ^ np.uint64(chain(FLIP))) >> np.uint64(63)).astype(np.bool_)


def held_out(key_hash: U64, fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Which records are held out: about `fraction` (below 1) of them, by their keys alone. [B] -> [B]"""
    return mix64(key_hash ^ np.uint64(chain(HELD_OUT, seed))) < np.uint64(int(fraction * 2**64))


def share(batch_images: int, rank: int, world: int) -> tuple[int, int]:
    """The half-open range of a global batch that `rank` of `world` takes; sizes differ by one at most."""
    return batch_images * rank // world, batch_images * (rank + 1) // world


def _ceil_root(records: int) -> int:
    root = int(np.sqrt(records))
    while root * root < records:
        root += 1
    while root > 1 and (root - 1) * (root - 1) >= records:
        root -= 1
    return max(1, root)


def _permute(values: U64, rows: int, columns: int, keys: U64) -> U64:
    """One pass of the Feistel network: row and column are shifted in turns by a keyed hash of the other."""
    row, column = np.divmod(values, np.uint64(columns))
    for turn, key in enumerate(keys):
        if turn % 2:
            column = _shift(column, mix64(row ^ key), columns)
        else:
            row = _shift(row, mix64(column ^ key), rows)
    return row * np.uint64(columns) + column


def _shift(values: U64, hashes: U64, size: int) -> U64:
    """`values` plus a number below `size` drawn by each hash, modulo `size` (below 2^32)."""
    drawn = ((hashes >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
    shifted = values + drawn
    return np.where(shifted >= np.uint64(size), shifted - np.uint64(size), shifted)
