"""Batches of images in the order of (seed, epoch, position), for one rank of any number.

A position is one integer: the number of records consumed since the start. Of n records, position p
is in epoch p // n. The global batch of a step has the same records at any world size; the shares of
two ranks differ by one record at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
import xxhash

from udl_dist.core.rng import chain
from udl_dist.data.loader import order
from udl_dist.data.loader.ahead import ChunkReader, read_ahead
from udl_dist.data.loader.damage import BadRecordCounter
from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.decoded import MakeRows, nothing_decoded
from udl_dist.data.loader.loading import BatchPlan, Loader, RecordSource
from udl_dist.data.loader.records import I64, Allocate, KeysAhead, Records, unpinned
from udl_dist.data.settings import DataSettings
from udl_dist.storage.uris import name_of

T = TypeVar("T")
SAMPLES = 16  # records loaded together where they are given one by one: a job of a reader thread
WAITS = 0.05  # share of time: training that waits longer for data gets advice
PLANNED = 4096  # positions ordered together: batch by batch each would cost five times as much


class Stream:
    """The images of one or more data sets, brought to the training shape.

    Without weights several sets are one long set. With weights each set has its own epochs, and
    contributes its part of every 1,024 positions.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        settings: DataSettings,
        seed: int,
        weights: tuple[float, ...] = (),
        allocate: Allocate = unpinned,
        decoded: MakeRows = nothing_decoded,
    ) -> None:
        self.datasets, self.settings, self.seed = datasets, settings, seed
        self.shape = settings.shape
        self.loader = Loader(datasets, settings, seed, allocate, decoded)
        self.records = int(self.loader.starts[-1])
        # One set with a weight is the set itself: its order must not change with a useless weight.
        self._weights = weights if len(datasets) > 1 else ()
        order.refuse_weights(weights, len(datasets))
        self._remote = any(dataset.shards.remote for dataset in datasets)
        self._in_blocks = settings.order == "blocks" or (settings.order == "auto" and self._remote)
        self._mean_bytes = sum(each.record_bytes * each.records for each in datasets) / self.records
        # At least 256 runs, or a small set would hardly be shuffled.
        run = min(int(settings.block_bytes / self._mean_bytes), self.records // 256)
        self._blocks = order.Blocks(max(1, run))
        self._bad_records = BadRecordCounter(settings)
        self.spent = self.loader.spent

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of labels 0, 1, …; () if a set has no labels or the sets have other classes."""
        first, *others = {dataset.classes for dataset in self.datasets}
        return () if others else first

    @property
    def damage(self) -> dict[str, None]:
        """What was wrong with records that were replaced, in order."""
        return self._bad_records.lines

    def advice(self, wait_share: float) -> str:
        """How to speed up the slowest stage; "" if training waits for at most 5 % of its time."""
        return self.spent.advice(self.settings, self._remote, wait_share) * (wait_share > WAITS)

    def shards(self) -> dict[str, str]:
        """A line on each shard, which a resume compares."""
        # Sizes and hashes, not times: the same shards copied elsewhere are the same.
        return {
            name_of(dataset.index.shard_path(number)): (
                f"{shard.records} records in {shard.shard_bytes} bytes, {shard.rows_hash}"
            )
            for dataset in self.datasets
            for number, shard in enumerate(dataset.index.shards)
        }

    @property
    def fingerprint(self) -> str:
        """A hash of exactly these images, this shape and this order; a resume compares it."""
        sets = " ".join(dataset.fingerprint for dataset in self.datasets)
        arranged = self._blocks if self._in_blocks else "full"
        return xxhash.xxh3_128_hexdigest(
            f"{sets} {self.shape} {self.settings.fit} {arranged} {self._weights}".encode()
        )

    def batches(
        self, position: int, batch_images: int, rank: int = 0, world: int = 1
    ) -> Iterator[Records]:
        """Endless batches; batch k begins at `position + k * batch_images`.

        Batches straddle epochs, so each one is full. Raises DataError for a damaged record, with
        its shard, byte and key.
        """
        plans = self._plans(position, batch_images, rank, world)  # numbers only, nothing is read
        return self._bad_records.counted(self._read(plans, self.loader.load))

    def once(self, batch_images: int, rank: int = 0, world: int = 1) -> Iterator[Records]:
        """Every record once, in the order of the index, without augmentation, with epoch 0's keys.

        A rank gets a contiguous part.
        """
        # Contiguous, so that object storage and page cache read from front to back.
        start, stop = order.share(self.records, rank, world)
        numbers = (
            np.arange(first, min(first + batch_images, stop))
            for first in range(start, stop, batch_images)
        )
        plans = (BatchPlan(places, np.zeros_like(places), False) for places in numbers)
        return self._bad_records.counted(self._read(plans, self.loader.load))

    def samples(self, position: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Endless records as webdataset's samples, not decoded; ranks alternate."""
        for samples in self._read(self._alternate(position, rank, world), self.loader.samples):
            yield from samples

    def refuse_damage(self, damaged: int, images: int) -> None:
        """Raise DataError if `damaged` records among `images`, over all ranks, are too many."""
        # At least an epoch: one damaged record among the first ten is no sign of a bad set.
        self._bad_records.refuse(damaged, max(images, self.records))

    def _plans(
        self, position: int, batch_images: int, rank: int, world: int
    ) -> Iterator[BatchPlan]:
        """The records in each batch of one rank, computed for several batches together."""
        start, stop = order.share(batch_images, rank, world)
        # At most an epoch ahead; few at first, so that no run waits for its first batch.
        most, ahead = min(PLANNED // max(1, stop - start), self.records // batch_images), 1
        while True:
            firsts = range(position, position + ahead * batch_images, batch_images)
            shares = [self._share(first, batch_images, start, stop) for first in firsts]
            numbers, epochs = self._at(np.concatenate(shares))
            keys = self.loader.keys_ahead(numbers, epochs)
            for row in (np.arange(ahead) * (stop - start)).tolist():
                within = slice(row, row + stop - start)
                yield BatchPlan(numbers[within], epochs[within], True, KeysAhead(keys, row))
            position += ahead * batch_images
            ahead = max(1, min(most, 2 * ahead))

    def _alternate(self, position: int, rank: int, world: int) -> Iterator[BatchPlan]:
        """Every `world`-th position, SAMPLES at a time."""
        for first in count(position + rank, world * PLANNED):
            numbers, epochs = self._at(np.arange(first, first + world * PLANNED, world))
            for start in range(0, PLANNED, SAMPLES):
                part = slice(start, start + SAMPLES)
                yield BatchPlan(numbers[part], epochs[part], False)

    def _share(self, first: int, batch_images: int, start: int, stop: int) -> I64:
        """The positions of one rank's share of a batch; in blocks, whole lanes where possible."""
        if not self._in_blocks:
            return np.arange(first + start, first + stop, dtype=np.int64)
        # Sorting a batch by lane gives each rank whole lanes: two ranks rarely read the same run.
        place = first % self.records
        if not self._weights and place + batch_images <= self.records:
            return first + order.by_lane(place, batch_images, start, stop)
        # The lanes of a batch across two epochs, or of weighted sets, are irregular.
        positions = np.arange(first, first + batch_images, dtype=np.int64)
        lanes = self._places(positions)[2] % order.LANES
        return positions[np.argsort(lanes, kind="stable")[start:stop]]

    def _places(self, positions: I64) -> tuple[I64, I64, I64]:
        """Data set (0 without weights), epoch and place in the epoch of each position."""
        if not self._weights:
            epochs, places = np.divmod(positions, self.records)
            return np.zeros_like(positions), epochs, places
        sets, places = order.mixed(self.seed, positions, self._weights)
        return sets, *np.divmod(places, np.diff(self.loader.starts)[sets])

    def _at(self, positions: I64) -> tuple[I64, I64]:
        """Record numbers and epochs of positions."""
        sets, epochs, places = self._places(positions)
        numbers = np.empty_like(places)
        # One number for (epoch, set), as each such pair has its own permutation.
        passes = epochs * len(self.datasets) + sets
        for each in np.unique(passes).tolist():
            within = passes == each
            epoch, number = divmod(each, len(self.datasets))
            numbers[within] = self._within_epoch(number, epoch, places[within])
        return numbers, epochs

    def _within_epoch(self, number: int, epoch: int, places: I64) -> I64:
        start, records, seed = 0, self.records, self.seed
        if self._weights:
            start, records = int(self.loader.starts[number]), self.datasets[number].records
            seed = chain(self.seed, number)  # or sets of equal size would have equal orders
        if self._in_blocks:
            return start + order.record_in_blocks(seed, epoch, places, records, self._blocks)
        return start + order.record_at(seed, epoch, places, records)

    def _read(
        self, plans: Iterable[BatchPlan], load: Callable[[BatchPlan, Sequence[RecordSource]], T]
    ) -> Iterator[T]:
        """Load plans in order. A generator, so that closing it ends the reading."""
        chunk = self._blocks.records if self._in_blocks else 1
        # Each lane holds the runs of one window, and in the next step those of a second one.
        windows = 2 * order.LANES * self._blocks.window * self.settings.block_bytes
        most = self.settings.read_ahead_bytes + windows
        sources: list[RecordSource] = [
            # A shard on disk is mapped: the kernel's page cache reads ahead.
            ChunkReader(dataset, chunk, most) if dataset.shards.remote else dataset
            for dataset in self.datasets
        ]
        try:
            plans = self._announced(plans, sources) if self._remote else plans
            if readers := self.settings.readers:
                yield from read_ahead(lambda plan: load(plan, sources), plans, readers, self._depth)
            else:
                yield from (load(plan, sources) for plan in plans)
        finally:
            for source in sources:
                if isinstance(source, ChunkReader):
                    source.close()

    def _announced(
        self, plans: Iterable[BatchPlan], sources: Sequence[RecordSource]
    ) -> Iterator[BatchPlan]:
        """Yields plans after requesting their chunks, as early as memory allows."""
        remote = [(n, each) for n, each in enumerate(sources) if isinstance(each, ChunkReader)]
        waiting: deque[BatchPlan] = deque()
        # A quarter of the memory: chunks hold neighbours, too, that are not yet due.
        most = min(self.settings.read_ahead_bytes / 4 / self._mean_bytes, self.records / 2)
        for plan in plans:
            waiting.append(plan)
            numbers = plan.numbers[~self.loader.decoded.has(plan.numbers)]
            for number, source in remote:
                start, stop = self.loader.starts[number : number + 2]
                source.expect(numbers[(numbers >= start) & (numbers < stop)] - start)
            if len(waiting) * max(1, len(plan.numbers)) > most:
                yield waiting.popleft()
        yield from waiting

    def _depth(self, plan: BatchPlan) -> int:
        """How many batches of this size the memory for reading ahead holds."""
        batch_bytes = max(1, len(plan.numbers) * int(np.prod(self.shape)))
        return self.settings.read_ahead_bytes // batch_bytes
