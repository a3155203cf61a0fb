"""Batches from shards that cannot be indexed, read from start to end by webdataset's own reader:
what is left of a `Stream` where nobody can go back. Knows no URL and no tar.

Each epoch the shards are shuffled and dealt to the ranks, the records of a rank pass through a
buffer that mixes them, and a rank that is through with its shards begins its next epoch, so that
none ever waits for another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice, takewhile
from typing import Any, cast

import numpy as np
import xxhash

from udl_dist.data.images.coding import decode_into
from udl_dist.data.images.fitting import crops
from udl_dist.data.loader import order
from udl_dist.data.loader.feed import Toll
from udl_dist.data.loader.loading import Allocate, Records, Spent
from udl_dist.data.loader.reader import read_ahead
from udl_dist.data.loader.sequence import Entry, entries, name_of_shard
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.places import LOST

# records that are mixed, and how many of them are waited for before the first is given
BUFFER, FIRST = 4096, 256
AHEAD = 3  # batches that are read ahead of their decoding
Batch = list[tuple[int, Entry]]  # with the epoch of each


class Sequential:
    """The images of shards that are read in sequence, brought to the training shape; see `Feed`."""

    def __init__(
        self,
        shards: Sequence[str],
        settings: DataSettings,
        seed: int,
        allocate: Allocate = lambda shape: np.empty(shape, np.uint8),
    ) -> None:
        self.settings, self.shape, self.seed = settings, settings.shape, seed
        self.records = 0  # unknown
        self.spent = Spent()
        self.slow_storage = (
            "copy the shards to a disk or to object storage, where they can be indexed"
        )
        self.lost = f"data.sequential: {LOST}; {held_out_in_words(settings)}"
        self._shards, self._allocate, self._toll = tuple(shards), allocate, Toll(settings)

    @property
    def damage(self) -> dict[str, None]:
        """What was wrong with records that others stood in for, and with shards that broke off, in
        order.
        """
        return self._toll.lines

    @property
    def fingerprint(self) -> str:
        """A name for these shards and this shape; what is in the shards is not known."""
        names = " ".join(sorted(map(name_of_shard, self._shards)))
        return xxhash.xxh3_128_hexdigest(
            f"sequential {names} {self.shape} {self.settings.fit}".encode()
        )

    def shards(self) -> dict[str, str]:
        """What is known of each shard: its name."""
        return {name_of_shard(shard): "read in sequence" for shard in self._shards}

    def batches(
        self, position: int, batch_images: int, rank: int = 0, world: int = 1
    ) -> Iterator[Records]:
        """Endless batches of one rank's share. `position` seeds an order that begins anew there."""
        refuse_few_shards(len(self._shards), world)
        start, stop = order.share(batch_images, rank, world)
        stopping = threading.Event()
        chance = np.random.default_rng([self.seed, position, rank])
        epochs = takewhile(lambda _: not stopping.is_set(), count())
        mixed = (
            pair
            for epoch in epochs
            for pair in self._epoch(position, epoch, rank, world, chance, stopping)
        )
        return self._toll.counted(self._decoded(self._cut(mixed, stop - start), True, stopping))

    def once(self, batch_images: int, rank: int = 0, world: int = 1) -> Iterator[Records]:
        """Every record of a rank's shards once, in the order of the shards, not augmented."""
        stopping = threading.Event()
        plain = ((0, entry) for entry in self._read(self._shards[rank::world], stopping))
        return self._toll.counted(self._decoded(self._cut(plain, batch_images), False, stopping))

    def refuse_damage(self, damaged: int, images: int) -> None:
        """Raise DataError if so many damaged records among so many images, over all ranks, are too
        many.
        """
        self._toll.refuse(damaged, images)

    def _epoch(
        self,
        position: int,
        epoch: int,
        rank: int,
        world: int,
        chance: np.random.Generator,
        stopping: threading.Event,
    ) -> Iterator[tuple[int, Entry]]:
        """The records of one rank's epoch, mixed; raise DataError if there are none, which would go
        on for ever.
        """
        dealt = np.random.default_rng([self.seed, position, epoch]).permutation(len(self._shards))[
            rank::world
        ]
        found, fault = False, ""
        for entry in shuffled(
            self._read([self._shards[shard] for shard in dealt], stopping),
            chance,
            self.settings.read_ahead_bytes // 2,
        ):
            found, fault = found or not entry.fault, fault or entry.fault
            yield epoch, entry
        if not found and not stopping.is_set():
            raise DataError(f"no shard of rank {rank} gave a record: {fault}")

    def _read(self, shards: Sequence[str], stopping: threading.Event) -> Iterator[Entry]:
        for shard in shards:
            for entry in entries(shard, self.settings.storage, self.settings.naming):
                if stopping.is_set():
                    return
                if entry.fault and self.settings.damaged == "stop":
                    raise DataError(entry.fault)
                yield entry

    def _cut(self, pairs: Iterator[tuple[int, Entry]], rows: int) -> Iterator[Batch]:
        """Batches of so many records; the time this takes is spent on reading."""
        while True:
            began = time.perf_counter()
            batch = list(islice(pairs, rows))
            self.spent.add("read", began)
            if not batch:
                return
            yield batch

    def _decoded(
        self, batches: Iterator[Batch], augmented: bool, stopping: threading.Event
    ) -> Iterator[Records]:
        """Decode batches, in threads if there are readers; however it ends, what was opened is
        closed.
        """
        readers = self.settings.readers
        ahead: Any = (
            read_ahead(lambda _: next(batches, None), count(), 1, lambda _: AHEAD)
            if readers
            else batches
        )
        given: Iterator[Batch] = iter(ahead.__next__, None)
        ready: Any = (
            read_ahead(
                lambda batch: self._decode(batch, augmented), given, readers, lambda _: 2 * readers
            )
            if readers
            else (self._decode(batch, augmented) for batch in given)
        )
        try:
            yield from ready
        finally:
            stopping.set()
            for each in (ready, ahead, cast(Any, batches)):
                each.close()

    def _decode(self, batch: Batch, augmented: bool) -> Records:
        """One batch of pixels; a record that is damaged is replaced by one beside it, if it is not
        to stop the run.
        """
        began = time.perf_counter()
        epochs = np.array([epoch for epoch, _ in batch])
        hashes = np.array([xxhash.xxh3_64_intdigest(entry.key) for _, entry in batch], np.uint64)
        keys = np.concatenate(
            [
                order.keys(self.seed, epoch, hashes[place : place + 1])
                for place, epoch in enumerate(epochs.tolist())
            ]
        )
        images = self._allocate((len(batch), *self.shape))
        cut = (
            crops(keys, self.settings.random_crop)
            if augmented and self.settings.random_crop < 1
            else None
        )
        mirrored = (
            order.flips(keys) if augmented and self.settings.flip else np.zeros(len(batch), bool)
        )
        damaged = {}
        for place, (_, entry) in enumerate(batch):
            try:
                if entry.fault:
                    raise DataError(entry.fault)
                decode_into(
                    images[place],
                    entry.payload,
                    self.settings.fit,
                    None,
                    None if cut is None else cut[place],
                    bool(mirrored[place]),
                    self.settings.most_pixels,
                )
            except DataError as error:
                damaged[place] = entry.fault or f"key {entry.key!a}: the image {error}"
        labels = np.array([entry.label for _, entry in batch], np.int64)
        records = Records(
            images,
            np.full(len(batch), -1),
            keys,
            order.record_keys(self.seed, hashes),
            labels,
            damaged,
        )
        self._replace(records)
        self.spent.add("decode", began)
        return records

    def _replace(self, records: Records) -> None:
        """Let the next whole record of the batch stand in for each damaged one."""
        if records.damaged and self.settings.damaged == "stop":
            raise DataError(records.damaged[min(records.damaged)])
        whole = [place for place in range(len(records.records)) if place not in records.damaged]
        for place, line in records.damaged.items():
            if not whole:
                raise DataError(f"{line} (and so is every other of the batch)")
            other = next((after for after in whole if after > place), whole[0])
            for array in (records.images, records.keys, records.record_keys, records.labels):
                array[place] = array[other]


def shuffled(
    records: Iterator[Entry], chance: np.random.Generator, most_bytes: int
) -> Iterator[Entry]:
    """Records in random order as far as a buffer reaches; it fills while it already gives, two in
    for one out.
    """
    kept: list[Entry] = []
    held = 0
    for number, record in enumerate(records):
        kept.append(record)
        held += len(record.payload)
        filling = len(kept) < FIRST or (len(kept) < BUFFER and number % 2 == 0)
        while kept and (held > most_bytes or not filling):
            place = int(chance.integers(len(kept)))
            kept[place], kept[-1] = kept[-1], kept[place]
            held -= len(kept[-1].payload)
            yield kept.pop()
            filling = True
    chance.shuffle(kept)
    yield from kept


def refuse_few_shards(shards: int, world: int) -> None:
    """Raise UsageError where a rank would have no shard to read."""
    if shards < world:
        raise UsageError(
            f"data.sequential deals whole shards to ranks, and there are {shards} for run.workers ="
            f" {world}: name more shards, or lower run.workers"
        )


def held_out_in_words(settings: DataSettings) -> str:
    """What is held out, for the line that says what is lost."""
    return (
        f"held out is {settings.held_out!r}"
        if settings.held_out
        else "nothing is held out (data.held_out names it)"
    )
