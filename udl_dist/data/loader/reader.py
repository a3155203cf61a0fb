"""Batches of images in the order of (seed, epoch, position), for one rank or all; knows no model
and no device.

A position is one whole number: how many records of the endless order were consumed. Place p stands
in epoch p // n. The global batch of a step is the same records at any world size; a rank takes a
share of it, uneven if need be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.core.rng import chain
from udl_dist.data.loader import order
from udl_dist.data.loader.dataset import Dataset, Runs
from udl_dist.data.loader.feed import Toll
from udl_dist.data.loader.loading import Allocate, Loader, Plan, Records, Source, Spent
from udl_dist.data.settings import DataSettings
from udl_dist.errors import UsageError

I64 = NDArray[np.int64]
P = TypeVar("P")
T = TypeVar("T")
SAMPLES = 16  # that a rank loads at once where they are given one by one
# places that are sent through the order at once: a single batch would cost five times as much a
# record
PLANNED = 4096


class Stream:
    """The images of one or more data sets, brought to the training shape.

    Several are one long set, in which an epoch is each record of all of them once; or, with
    weights, each turns over in epochs of its own and gives its part of every 1,024 positions.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        settings: DataSettings,
        seed: int,
        weights: tuple[float, ...] = (),
        allocate: Allocate = lambda shape: np.empty(shape, np.uint8),
    ) -> None:
        self.datasets, self.settings, self.seed = datasets, settings, seed
        self.shape = settings.shape
        self.loader = Loader(datasets, settings, seed, allocate)
        self.records = int(self.loader.starts[-1])
        self._weights = weights if len(datasets) > 1 else ()
        self._refuse_odd_weights(weights)
        remote = any(dataset.shards.remote for dataset in datasets)
        self._in_blocks = settings.order == "blocks" or (settings.order == "auto" and remote)
        self._mean_bytes = sum(each.record_bytes * each.records for each in datasets) / self.records
        self._blocks = order.Blocks(
            max(1, min(int(settings.block_bytes / self._mean_bytes), self.records // 256))
        )
        self._toll = Toll(settings)
        self.lost = ""  # every promise is kept

    @property
    def spent(self) -> Spent:
        return self.loader.spent

    @property
    def damage(self) -> dict[str, None]:
        """What was wrong with records that others stood in for, in order."""
        return self._toll.lines

    @property
    def slow_storage(self) -> str:
        """What to do when reading, not decoding, is what training waits for."""
        if any(dataset.shards.remote for dataset in self.datasets):
            return (
                "raise data.block_bytes or data.read_ahead_bytes, or set data.storage_cache_bytes"
            )
        return "put the shards on a faster disk, or set data.order = 'blocks'"

    def shards(self) -> dict[str, str]:
        """What is known of each shard, to be compared with on a resume."""
        return {
            dataset.index.shard_path(
                number
            ): f"{shard.records} records in {shard.shard_bytes} bytes, {shard.rows_hash}"
            for dataset in self.datasets
            for number, shard in enumerate(dataset.index.shards)
        }

    @property
    def fingerprint(self) -> str:
        """A name for exactly these images, this shape and this order: whoever resumes compares
        it.
        """
        sets = " ".join(dataset.fingerprint for dataset in self.datasets)
        arranged = self._blocks if self._in_blocks else "full"
        return xxhash.xxh3_128_hexdigest(
            f"{sets} {self.shape} {self.settings.fit} {arranged} {self._weights}".encode()
        )

    def batches(
        self, position: int, batch_images: int, rank: int = 0, world: int = 1
    ) -> Iterator[Records]:
        """Endless batches from `position` on; batch k holds positions from `position + k *
        batch_images`.

        Batches straddle epochs, so each one is full. Raises DataError for a damaged record, naming
        shard, byte and key.
        """
        return self._toll.counted(
            self._read(self._plans(position, batch_images, rank, world), self.loader.load)
        )

    def once(self, batch_images: int, rank: int = 0, world: int = 1) -> Iterator[Records]:
        """Every record once, in the order of the index, a contiguous part a rank; keys of epoch 0,
        not augmented.
        """
        start, stop = order.share(self.records, rank, world)
        numbers = (
            np.arange(first, min(first + batch_images, stop))
            for first in range(start, stop, batch_images)
        )
        plans = (Plan(places, np.zeros_like(places), False) for places in numbers)
        return self._toll.counted(self._read(plans, self.loader.load))

    def samples(self, position: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Endless records from `position` on as webdataset's samples, not decoded; ranks take
        turns.
        """
        for samples in self._read(self._turns(position, rank, world), self.loader.samples):
            yield from samples

    def refuse_damage(self, damaged: int, images: int) -> None:
        """Raise DataError if so many damaged records among so many images, over all ranks, are too
        many.
        """
        self._toll.refuse(damaged, max(images, self.records))

    def _plans(self, position: int, batch_images: int, rank: int, world: int) -> Iterator[Plan]:
        """Which records come in each batch of one rank, worked out for several batches at a
        time.
        """
        start, stop = order.share(batch_images, rank, world)
        # no more than an epoch
        ahead = max(1, min(PLANNED // max(1, stop - start), self.records // batch_images))
        while True:
            firsts = position + batch_images * np.arange(ahead, dtype=np.int64)
            positions = np.concatenate(
                [self._share(first, batch_images, start, stop) for first in firsts.tolist()]
            )
            numbers, epochs = self._at(positions)
            for row in np.arange(ahead) * (stop - start):
                within = slice(row, row + stop - start)
                yield Plan(numbers[within], epochs[within], True)
            position += ahead * batch_images

    def _turns(self, position: int, rank: int, world: int) -> Iterator[Plan]:
        """Every `world`-th position, a few at a time."""
        for first in count(position + rank, world * PLANNED):
            numbers, epochs = self._at(np.arange(first, first + world * PLANNED, world))
            for start in range(0, PLANNED, SAMPLES):
                yield Plan(numbers[start : start + SAMPLES], epochs[start : start + SAMPLES], False)

    def _share(self, first: int, batch_images: int, start: int, stop: int) -> I64:
        """The positions of one rank's share of a batch; in blocks a share is whole lanes, as far as
        possible.
        """
        if not self._in_blocks:
            return np.arange(first + start, first + stop, dtype=np.int64)
        place = first % self.records
        if not self._weights and place + batch_images <= self.records:
            return first + order.by_lane(place, batch_images, start, stop)
        positions = np.arange(first, first + batch_images, dtype=np.int64)
        lanes = self._places(positions)[2] % order.LANES
        return positions[np.argsort(lanes, kind="stable")[start:stop]]

    def _places(self, positions: I64) -> tuple[I64, I64, I64]:
        """The data set (0 if they are one), the epoch and the place within it of each position."""
        if not self._weights:
            epochs, places = np.divmod(positions, self.records)
            return np.zeros_like(positions), epochs, places
        sets, turns = order.mixed(self.seed, positions, self._weights)
        return sets, *np.divmod(turns, np.diff(self.loader.starts)[sets])

    def _at(self, positions: I64) -> tuple[I64, I64]:
        """The record numbers and epochs of positions."""
        sets, epochs, places = self._places(positions)
        numbers = np.empty_like(places)
        turns = epochs * len(self.datasets) + sets
        for turn in np.unique(turns).tolist():
            within = turns == turn
            epoch, number = divmod(turn, len(self.datasets))
            numbers[within] = self._within_epoch(number, epoch, places[within])
        return numbers, epochs

    def _within_epoch(self, number: int, epoch: int, places: I64) -> I64:
        if not self._weights:
            start, records, seed = 0, self.records, self.seed
        else:
            start, records = int(self.loader.starts[number]), self.datasets[number].records
            seed = chain(self.seed, number)
        if self._in_blocks:
            return start + order.record_in_blocks(seed, epoch, places, records, self._blocks)
        return start + order.record_at(seed, epoch, places, records)

    def _read(
        self, plans: Iterable[Plan], load: Callable[[Plan, Sequence[Source]], T]
    ) -> Iterator[T]:
        """Load plans in order; a generator in any case, so that closing it is how reading ends."""
        run = self._blocks.records if self._in_blocks else 1
        most = (
            self.settings.read_ahead_bytes
            + 2 * order.LANES * self._blocks.window * self.settings.block_bytes
        )
        sources: list[Source] = [
            Runs(dataset, run, most) if dataset.shards.remote else dataset
            for dataset in self.datasets
        ]
        runs = [source for source in sources if isinstance(source, Runs)]
        try:
            if runs:
                plans = self._expected(plans, sources)
            readers = self.settings.readers
            if readers:
                yield from read_ahead(lambda plan: load(plan, sources), plans, readers, self._depth)
            else:
                yield from (load(plan, sources) for plan in plans)
        finally:
            for source in runs:
                source.close()

    def _depth(self, plan: Plan) -> int:
        """How many batches like this one may be made ahead of their use."""
        batch_bytes = max(1, len(plan.numbers) * int(np.prod(self.shape)))
        return max(1, min(2 * self.settings.readers, self.settings.read_ahead_bytes // batch_bytes))

    def _expected(self, plans: Iterable[Plan], sources: Sequence[Source]) -> Iterator[Plan]:
        """Tell runs of records what comes, as far ahead as may lie in memory."""
        waiting: deque[Plan] = deque()
        most = min(self.settings.read_ahead_bytes / 4 / self._mean_bytes, self.records / 2)
        for plan in plans:
            waiting.append(plan)
            for number, source in enumerate(sources):
                starts = self.loader.starts
                own = plan.numbers[
                    (plan.numbers >= starts[number]) & (plan.numbers < starts[number + 1])
                ]
                if own.size and isinstance(source, Runs):
                    source.expect(own - starts[number])
            if len(waiting) * max(1, len(plan.numbers)) > most:
                yield waiting.popleft()
        yield from waiting

    def _refuse_odd_weights(self, weights: tuple[float, ...]) -> None:
        if weights and len(weights) != len(self.datasets):
            raise UsageError(
                f"data.weights has {len(weights)} entries for {len(self.datasets)} sources: one for"
                " each"
            )
        if weights and np.diff(order.mix_edges(weights), prepend=0).min() < 1:
            raise UsageError(
                f"data.weights {weights} gives a source less than 1 of {order.MIX_BLOCK}: raise it"
            )


def read_ahead(
    load: Callable[[P], T], plans: Iterable[P], readers: int, depth: Callable[[P], int]
) -> Iterator[T]:
    """Load plans in threads, some batches ahead, and give them in order; closing it ends the
    threads.
    """
    pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
    remaining = iter(plans)
    waiting: deque[Future[T]] = deque()
    try:
        most = 1
        for plan in islice(remaining, 1):
            most = depth(plan)
            waiting.append(pool.submit(load, plan))
        waiting.extend(pool.submit(load, plan) for plan in islice(remaining, most))
        while waiting:
            loaded = waiting.popleft().result()
            waiting.extend(pool.submit(load, plan) for plan in islice(remaining, 1))
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
