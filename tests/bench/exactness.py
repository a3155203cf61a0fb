"""python -m tests.bench.exactness: resumes, resizes, mixed sets and damage, counted exactly; ends
with 1 on a miss.

The key of a delivered record, a hash of seed, epoch and record, says which epoch it belongs to; so
what is counted is (set, epoch, record), with a Counter: whatever comes twice or not at all shows,
also where a batch straddles epochs.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import xxhash

from tests.data.loader.made import shards
from udl_dist.core.rng import chain
from udl_dist.data.loader import order
from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards

STEPS, BATCH, BEYOND = 120, 4, 5  # of an epoch; and steps of the next one that tails reach into
EVERY = {"full": 1, "blocks": 4}  # steps between resumes
SCHEDULES, SEGMENTS = 520, 6
MIXES = ((0.5, 0.5), (0.2, 0.8), (1.0, 2.0, 3.0))
UNEVEN = ([7, 1, 13, 8], [1], [70, 3], [24, 24, 24], [60, 1, 1, 25], [31, 32, 33, 1, 2, 28])
Delivered = tuple[int, int, int]  # set, epoch, record
FIELDS = ("images", "records", "keys", "record_keys", "labels")


def opened(
    indexes: list[Index], order_name: str, weights: tuple[float, ...] = (), **changes: Any
) -> Stream:
    settings: dict[str, Any] = {
        "size": 8,
        "channels": 1,
        "readers": 0,
        "flip": True,
        "random_crop": 0.5,
        "order": order_name,
        "block_bytes": 700,
        **changes,
    }
    return Stream([Dataset(index) for index in indexes], DataSettings(**settings), 7, weights)


def global_batches(
    stream: Stream, position: int, batch: int, world: int
) -> Iterator[list[Records]]:
    """The shares of all ranks, step after step."""
    ranks = [stream.batches(position, batch, rank, world) for rank in range(world)]
    try:
        while True:
            yield [next(rank) for rank in ranks]
    finally:
        for rank in ranks:
            rank.close()  # type: ignore[attr-defined]


def digest(shares: list[Records]) -> str:
    """A hash of all that a global batch holds, whichever rank got which part of it."""
    state = xxhash.xxh3_128()
    for name in FIELDS:
        state.update(np.concatenate([getattr(share, name) for share in shares]).tobytes())
    return state.hexdigest()


def digests(stream: Stream, position: int, batch: int, world: int, steps: int) -> list[str]:
    batches = global_batches(stream, position, batch, world)
    found = [digest(shares) for shares in islice(batches, steps)]
    batches.close()  # type: ignore[attr-defined]
    return found


def resumes(
    index: Index, order_name: str, readers: int, world: int, every: int = 1
) -> tuple[int, int]:
    """Resume at each step of an epoch; how often that was, and tails that are not the whole run's
    (one rank's).
    """
    whole = digests(opened([index], order_name), 0, BATCH, 1, STEPS + BEYOND)
    stream, tried, missed = opened([index], order_name, readers=readers), 0, 0
    for step in range(0, STEPS, every):
        tried += 1
        missed += digests(stream, step * BATCH, BATCH, world, len(whole) - step) != whole[step:]
    return tried, missed


class Seen(NamedTuple):
    """What a schedule of resizes delivered."""

    missing: int  # records of complete epochs that never came
    doubled: int  # (set, epoch, record) that came more than once
    foreign: int  # records whose key is of no epoch that may have come
    other: int  # global batches that differ from those of one rank


def resized(stream: Stream, chance: Random, epochs: float = 1.3, most_world: int = 8) -> Seen:
    """Deliver some epochs, each segment of steps at a world and a batch size of its own, as if
    started again.
    """
    counted, position, foreign, other = Counter[Delivered](), 0, 0, 0
    known = names(stream, int(epochs * stream.records) + 1)
    while position < epochs * stream.records:
        batch, world = chance.randint(1, 40), chance.randint(1, most_world)
        steps = chance.randint(1, max(1, int(epochs * stream.records) // batch // SEGMENTS))
        alone = digests(stream, position, batch, 1, steps)
        for number, shares in enumerate(
            islice(global_batches(stream, position, batch, world), steps)
        ):
            other += digest(shares) != alone[number]
            pairs = [
                pair
                for each in shares
                for pair in zip(each.keys.tolist(), each.records.tolist(), strict=True)
            ]
            foreign += sum(pair not in known for pair in pairs)
            counted.update(known[pair] for pair in pairs if pair in known)
        position += batch * steps
    return Seen(
        missing(stream, counted), sum(count > 1 for count in counted.values()), foreign, other
    )


def names(stream: Stream, positions: int) -> dict[tuple[int, int], Delivered]:
    """What each pair of key and record number means, for all epochs that so many positions can
    reach, and more.
    """
    known, start = dict[tuple[int, int], Delivered](), 0
    for number, dataset in enumerate(stream.datasets):
        hashes, records = np.asarray(dataset.index.rows["key_hash"]), dataset.records
        seed = chain(stream.seed, number) if number else stream.seed
        for epoch in range((positions + 2 * BATCH + 40 * SEGMENTS) // records + 2):
            for own, key in enumerate(order.keys(seed, epoch, hashes).tolist()):
                known[key, start + own] = (number, epoch, own)
        start += records
    return known


def missing(stream: Stream, counted: Counter[Delivered]) -> int:
    """Records that never came in epochs that others have gone beyond."""
    lacking = 0
    for number, dataset in enumerate(stream.datasets):
        begun = max((epoch for which, epoch, _ in counted if which == number), default=0)
        came = sum(which == number and epoch < begun for which, epoch, _ in counted)
        lacking += begun * dataset.records - came
    return lacking


def damage(
    index: Index,
    order_name: str,
    broken: set[int],
    worlds: tuple[int, ...] = (1, 2, 3, 4, 8),
    steps: int = 2 * STEPS,
) -> tuple[int, int]:
    """Two epochs over damaged records in each of these worlds; how many there were, and those that
    are not alike.
    """
    skipping: dict[str, Any] = {"damaged": "skip", "damaged_limit": 1.0}
    whole, tried, missed = (
        digests(opened([index], order_name, **skipping), 0, BATCH, 1, steps),
        0,
        0,
    )
    for world in worlds:
        for readers in (0, 2):
            stream = opened([index], order_name, readers=readers, **skipping)
            batches = list(islice(global_batches(stream, 0, BATCH, world), steps))
            came = Counter(
                int(record) for shares in batches for share in shares for record in share.records
            )
            stood_in = sum(len(share.damaged) for shares in batches for share in shares)
            tried += 1
            missed += not (
                [digest(shares) for shares in batches] == whole
                and not broken & set(came)
                and len(stream.damage) == len(broken)
                and stood_in == 2 * len(broken)
                and sum(came.values()) == steps * BATCH
                and min(came.values()) >= 2
                and len(came) == index.records - len(broken)
            )
    return tried, missed


def spoilt(folder: Path, counts: list[int], broken: set[int]) -> Index:
    """Shards in which one bit of some payloads is flipped after they were indexed."""
    index = index_shards(shards(folder, counts))
    for record in broken:
        path = index.shard_path(int(index.shard_of(np.array([record]))[0]))
        with open(path, "r+b") as file:
            at = int(index.rows["offset"][record]) + 30
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 16]), at)
    return index


class Tally:
    """Lines with a verdict."""

    missed = 0

    def __init__(self) -> None:
        self._began = time.monotonic()

    def line(self, name: str, tried: int, missed: int, more: str = "") -> None:
        self.missed += missed
        print(
            f"{name:58}{tried:6} tried {missed:4} missed {time.monotonic() - self._began:6.0f} s "
            f" {more}",
            flush=True,
        )


def resizes(
    indexes: list[Index],
    order_name: str,
    weights: tuple[tuple[float, ...], ...],
    count: int,
    seed: int,
) -> tuple[int, Seen]:
    """Random schedules over random sets; how many are not exact, and all figures added up."""
    chance, wrong, total = Random(seed), 0, Seen(0, 0, 0, 0)
    for _ in range(count):
        weighed = chance.choice(weights)
        chosen = chance.sample(indexes, len(weighed) or chance.choice((1, 1, 2)))
        seen = resized(opened(chosen, order_name, weighed), chance)
        wrong += any(seen)
        total = Seen(*(one + other for one, other in zip(total, seen, strict=True)))
    return wrong, total


def main() -> None:
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        epoch = index_shards(shards(folder / "epoch", [100, 1, 260, 119]))
        uneven = [
            index_shards(shards(folder / str(number), counts))
            for number, counts in enumerate(UNEVEN)
        ]
        for order_name in ("full", "blocks"):
            for world in (1, 2, 4):
                for readers in (0, 2):
                    done = resumes(epoch, order_name, readers, world, EVERY[order_name])
                    tally.line(
                        f"resume within an epoch, {order_name}, {world} ranks, {readers} readers",
                        *done,
                    )
            for label, sets, weights, count in [
                ("resizes, worlds 1-8", uneven, ((),), SCHEDULES // 2),
                ("resizes of weighted mixes", uneven[2:], MIXES, SCHEDULES // 8),
            ]:
                wrong, total = resizes(sets, order_name, weights, count, 0)
                tally.line(f"{label}, {order_name}", count, wrong, str(total)[4:])
        broken = {3, 99, 100, 101, 250, 251, 252, 479}
        bad = spoilt(folder / "bad", [100, 1, 260, 119], broken)
        for order_name in ("full", "blocks"):
            tally.line(f"damage skipped alike, {order_name}", *damage(bad, order_name, broken))
    print(f"missed: {tally.missed}")
    sys.exit(bool(tally.missed))


if __name__ == "__main__":
    main()
