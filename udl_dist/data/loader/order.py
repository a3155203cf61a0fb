"""The order of records and their random numbers: pure functions of (seed, epoch, position).

No list of all records exists: place p of an epoch goes through a keyed permutation of 0 … n-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from udl_dist.core.rng import U64, chain, mix64, permuted, permuted_each
from udl_dist.errors import UsageError

I64 = NDArray[np.int64]

# One constant per use of random numbers, so that no two uses are correlated.
# Short words in ASCII: "order", "keys", "reck".
ORDER, KEYS, RECORD_KEYS = 0x6F72646572, 0x6B657973, 0x7265636B
FLIP, HELD_OUT = 0x666C6970, 0x68656C64
WINDOW, TAIL, SUBSTITUTE, MIX = 0x77696E64, 0x7461696C, 0x73756273, 0x6D6978
# A constant: a number that followed the world size would change the order with it.
LANES = 64
MIX_BLOCK = 1024


@dataclass(frozen=True)
class Blocks:
    """An order for storage with slow random access: runs of `records` neighbours are shuffled.

    Place p is in lane p % 64, so every batch has records from 64 distant places. Within a lane the
    runs come in random order, and `window` of them are shuffled together. In a set sorted by 100
    classes, the class counts of batches of 256 then have 1.4 times the variance of a full shuffle
    (2.5 times with a window of 2). Lanes do not depend on the world size, and a rank reads whole
    lanes, so two ranks rarely read the same run.
    """

    records: int
    window: int = 8


def record_at(seed: int, epoch: int, places: I64, records: int) -> I64:
    """The record at each place of a fully shuffled epoch: a permutation. [B] -> [B]"""
    return permuted(places.astype(np.uint64), records, chain(ORDER, seed, epoch)).astype(np.int64)


def record_in_blocks(seed: int, epoch: int, places: I64, records: int, blocks: Blocks) -> I64:
    """The record at each place of an epoch in the order of `blocks`: a permutation. [B] -> [B]"""
    # Slots are places with the lanes laid end to end; a lane reads its slots from front to back.
    base, row, rows = _lane_rows(places, records)
    # `whole` runs of full length, and one of `left` records.
    whole, left = divmod(records, blocks.records)
    # The last run is shorter and may come anywhere, so that it is not always the last to be read.
    begin = chain(TAIL, seed, epoch) % (whole + 1) * blocks.records
    # A window is whole runs. The shift lets the windows of different lanes end at different steps,
    # or all lanes would fetch at once.
    size = blocks.records * blocks.window
    shift = places % LANES % blocks.window * blocks.records
    slots = base + row
    window = (
        # The short run counts as no slot, so that all windows hold whole runs.
        slots - np.where(slots >= begin + left, left, np.maximum(0, slots - begin)) + shift
    ) // size
    first, last = (
        # Edges beyond the short run move by its length.
        edge + np.where(edge > begin, left, 0)
        for edge in (window * size - shift, window * size + size - shift)
    )
    # A window ends with its lane: lanes never share one.
    first, last = np.maximum(base, first), np.minimum(base + rows, last)
    # Each window has its own permutation, by its first slot.
    keys = mix64(first.astype(np.uint64) ^ np.uint64(chain(WINDOW, seed, epoch)))
    within = permuted_each(
        (slots - first).astype(np.uint64), (last - first).astype(np.uint64), keys
    )
    return _record_of_slot(
        seed, epoch, first + within.astype(np.int64), begin, whole, left, blocks.records
    )


def _lane_rows(places: I64, records: int) -> tuple[I64, I64, I64]:
    """Each place's lane: its first slot with lanes laid end to end, the row in it, its rows."""
    lane, row = places % LANES, places // LANES
    # The first `more` lanes have one row more.
    rows, more = divmod(records, LANES)
    return lane * rows + np.minimum(lane, more), row, rows + (lane < more).astype(np.int64)


def by_lane(place: int, count: int, start: int, stop: int) -> I64:
    """Of `count` places from `place` on, sorted by lane, those from `start` to `stop`, as offsets.

    Computed without sorting: one of many ranks needs a small share of a large batch.
    """
    # Of each lane: its first offset at or behind `place`, how many follow, and where they end.
    first = (np.arange(LANES) - place) % LANES  # of each lane
    lengths = np.maximum(0, (count - first + LANES - 1) // LANES)
    ends = np.cumsum(lengths)
    wanted = np.arange(start, stop)
    lanes = np.searchsorted(ends, wanted, side="right")
    found: I64 = first[lanes] + (wanted - (ends - lengths)[lanes]) * LANES
    return found


def _record_of_slot(  # noqa: PLR0913  (numbers of one formula)
    seed: int, epoch: int, slots: I64, begin: int, whole: int, left: int, run: int
) -> I64:
    """Runs of `run` records in random order, with the last one, of `left` records, at `begin`."""
    in_tail = (slots >= begin) & (slots < begin + left)
    # Right for the short run, whose records are the last of the set; the others are set below.
    found = whole * run + slots - begin
    number, offset = np.divmod((slots - np.where(slots >= begin + left, left, 0))[~in_tail], run)
    if whole:
        number = permuted(number.astype(np.uint64), whole, chain(ORDER, seed, epoch)).astype(
            np.int64
        )
    found[~in_tail] = number * run + offset
    return found


def mixed(seed: int, positions: I64, weights: tuple[float, ...]) -> tuple[I64, I64]:
    """The data set at each position, and the place in its own endless order. [B] -> [B], [B]

    In each 1,024 positions every data set has its weight's part, rounded to a 1,024th, shuffled.
    """
    blocks, within = np.divmod(positions, MIX_BLOCK)
    sets, places = np.empty_like(positions), np.empty_like(positions)
    for block in np.unique(blocks).tolist():
        here = blocks == block
        chosen, before = _mix_block(seed, block, weights)
        # A place in the set's own order: its epochs are exact, whatever the other sets do.
        sets[here], places[here] = chosen[within[here]], before[within[here]]
    return sets, places


# Neighbouring batches use the same block, which costs as much as decoding ten images.
@lru_cache(64)
def _mix_block(seed: int, block: int, weights: tuple[float, ...]) -> tuple[I64, I64]:
    """`mixed` of the positions of one block."""
    edges = mix_edges(weights)
    # The block's number is the epoch of the permutation, so every block is shuffled differently.
    shuffled = record_at(chain(MIX, seed), block, np.arange(MIX_BLOCK), MIX_BLOCK)
    chosen = np.searchsorted(edges, shuffled, side="right")
    before = np.empty(MIX_BLOCK, np.int64)
    for number, share in enumerate(np.diff(edges, prepend=0).tolist()):
        # Each block takes exactly `share` records of a set, so the sum needs no running count.
        before[chosen == number] = block * share + np.arange(share)
    return chosen, before


def mix_edges(weights: tuple[float, ...]) -> I64:
    """The cumulated parts of 1,024 of each data set."""
    # Rounding the cumulated parts, not each one, keeps their sum at 1,024.
    edges: I64 = np.rint(np.cumsum(weights) / np.sum(weights) * MIX_BLOCK).astype(np.int64)
    return edges


def refuse_weights(weights: tuple[float, ...], sets: int) -> None:
    """Raise UsageError if weights are not one for each data set, or one is too small."""
    if weights and len(weights) != sets:
        raise UsageError(
            f"data.weights has {len(weights)} entries for {sets} sources: one for each"
        )
    if weights and np.diff(mix_edges(weights), prepend=0).min() < 1:
        raise UsageError(
            f"data.weights {weights} gives a source less than 1 of {MIX_BLOCK}: raise it"
        )


def keys(seed: int, epoch: int, key_hash: U64) -> I64:
    """A random number for each record, new in each epoch. [B] -> [B]"""
    # From the key, not from the number: augmentation survives a repacking of the shards.
    return mix64(key_hash ^ np.uint64(chain(KEYS, seed, epoch))).view(np.int64)


def record_keys(seed: int, key_hash: U64) -> I64:
    """A random number for each record, the same in every epoch. [B] -> [B]"""
    return mix64(key_hash ^ np.uint64(chain(RECORD_KEYS, seed))).view(np.int64)


def flips(keys: I64) -> NDArray[np.bool_]:
    """Which images are mirrored: half of them, by their keys. [B] -> [B]"""
    return (mix64(keys.view(np.uint64) ^ np.uint64(chain(FLIP))) >> np.uint64(63)).astype(np.bool_)


def held_out(key_hash: U64, fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Which records are held out: about `fraction` < 1 of them, by key alone. [B] -> [B]"""
    # A larger fraction holds out the same records and more.
    return mix64(key_hash ^ np.uint64(chain(HELD_OUT, seed))) < np.uint64(int(fraction * 2**64))


def substitute(record: int, attempt: int, records: int) -> int:
    """The record that replaces a damaged one at the `attempt`-th try, at any world size."""
    # Not the next record: its neighbours are likely to be damaged too.
    return chain(SUBSTITUTE, record, attempt) % records


def share(batch_images: int, rank: int, world: int) -> tuple[int, int]:
    """The half-open range of a global batch for `rank`; sizes differ by at most one."""
    # Integers, so the shares of all ranks join without gap or overlap.
    return batch_images * rank // world, batch_images * (rank + 1) // world
