"""Batches of images in the order of (seed, epoch, position), for one rank or all; knows no model and no device.

A position is one whole number: how many records of the endless order were consumed. Place p stands in epoch p // n. The
global batch of a step is the same records at any world size; a rank takes a contiguous share of it, uneven if need be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.errors import DataError
from udl_dist.stream import order
from udl_dist.stream.images import Pixels, decode_into
from udl_dist.stream.index import Index
from udl_dist.stream.settings import DataSettings
from udl_dist.stream.shards import Shards

I64 = NDArray[np.int64]
PLANNED = 4096  # places that are sent through the order at once: a single batch would cost five times as much a record


@dataclass(frozen=True)
class Records:
    """One rank's share of a global batch."""

    images: Pixels  # uint8 [B, C, H, W]
    records: I64  # [B] record numbers
    keys: I64  # [B] random, by (seed, epoch, record)
    record_keys: I64  # [B] random, by (seed, record)
    labels: I64  # [B], -1: none


@dataclass(frozen=True)
class Plan:
    """What is to be loaded: record numbers and the epoch of each."""

    records: I64  # [B]
    epochs: I64  # [B]
    flip: bool


class Stream:
    """The images of an index, or of a selection of its records, brought to the training shape."""

    def __init__(self, index: Index, settings: DataSettings, seed: int, selection: I64 | None = None) -> None:
        self.index, self.settings, self.seed = index, settings, seed
        self.shape = settings.shape
        self._selection = selection
        self._shards = Shards(index)
        self.records = index.records if selection is None else len(selection)
        if not self.records:
            raise DataError(f"{str(index.path)!r}: no record is left to read: change data.held_out_fraction")

    @property
    def fingerprint(self) -> str:
        """A name for exactly these images in this shape: whoever resumes compares it."""
        chosen = "all" if self._selection is None else xxhash.xxh3_128_hexdigest(self._selection.tobytes())
        return xxhash.xxh3_128_hexdigest(f"{self.index.fingerprint} {chosen} {self.shape} {self.settings.fit}".encode())

    def batches(self, position: int, batch_images: int, rank: int = 0, world: int = 1) -> Iterator[Records]:
        """Endless batches from `position` on; batch k holds positions from `position + k * batch_images`.

        Batches straddle epochs, so each one is full. Raises DataError for a damaged record, naming shard, byte and key.
        """
        return self._read(self._plans(position, batch_images, *order.share(batch_images, rank, world)))

    def once(self, batch_images: int, rank: int = 0, world: int = 1) -> Iterator[Records]:
        """Every record once, in the order of the index, a contiguous part a rank; keys of epoch 0, never mirrored."""
        start, stop = order.share(self.records, rank, world)
        numbers = (np.arange(first, min(first + batch_images, stop)) for first in range(start, stop, batch_images))
        return self._read(Plan(self._chosen(places), np.zeros_like(places), False) for places in numbers)

    def _plans(self, position: int, batch_images: int, start: int, stop: int) -> Iterator[Plan]:
        """Which records come in each batch of one rank, worked out for several batches at a time."""
        share = stop - start
        ahead = max(1, min(PLANNED // max(1, share), self.records // batch_images))  # no more than an epoch
        while True:
            steps = position + batch_images * np.arange(ahead, dtype=np.int64)[:, None]
            epochs, places = np.divmod(steps + np.arange(start, stop, dtype=np.int64), self.records)
            records = np.empty_like(places)
            for epoch in range(*_span(epochs.ravel())):
                within = epochs == epoch
                records[within] = order.record_at(self.seed, epoch, places[within], self.records)
            for row in range(ahead):
                yield Plan(self._chosen(records[row]), epochs[row], self.settings.flip)
            position += ahead * batch_images

    def _chosen(self, numbers: I64) -> I64:
        return numbers if self._selection is None else self._selection[numbers]

    def _read(self, plans: Iterable[Plan]) -> Iterator[Records]:
        """Load plans in order; a generator in either case, so that closing it is how reading ends."""
        readers = self.settings.readers
        yield from read_ahead(self._load, plans, readers) if readers else map(self._load, plans)

    def _load(self, plan: Plan) -> Records:
        """Read, check and decode the records of one batch."""
        payloads, key_hash, labels = self._shards.payloads(plan.records)
        keys = np.empty(len(plan.records), np.int64)
        for epoch in range(*_span(plan.epochs)):
            within = plan.epochs == epoch
            keys[within] = order.keys(self.seed, epoch, key_hash[within])
        images = self._decoded(payloads, plan.records, order.flips(keys) if plan.flip else np.zeros(len(keys), bool))
        return Records(images, plan.records, keys, order.record_keys(self.seed, key_hash), labels)

    def _decoded(self, payloads: list[bytes], records: I64, mirrored: NDArray[np.bool_]) -> Pixels:  # -> [B, C, H, W]
        about = self.index.about
        if about.format in ("npy", "raw") and about.shape == self.shape:
            joined = _joined(payloads, self.shape)
            if joined is not None:
                joined[mirrored] = joined[mirrored, :, :, ::-1]
                return joined
        raw_shape = about.shape if about.format == "raw" else None
        images = np.empty((len(payloads), *self.shape), np.uint8)
        for place, (payload, flip) in enumerate(zip(payloads, mirrored.tolist(), strict=True)):
            try:
                decode_into(images[place], payload, self.settings.fit, raw_shape, mirrored=flip)
            except DataError as error:
                where = self._shards.where(int(records[place]))
                raise DataError(f"{where}: the image {error}: pack the images again without it") from error
        return images


def _span(epochs: I64) -> tuple[int, int]:
    """The half-open range of epochs, which never go back."""
    return (int(epochs[0]), int(epochs[-1]) + 1) if epochs.size else (0, 0)


def _joined(payloads: list[bytes], shape: tuple[int, int, int]) -> Pixels | None:
    """Images that are bare pixels behind equal headers (raw: of no bytes), in one copy; None if they are not that."""
    if not payloads:
        return np.empty((0, *shape), np.uint8)
    pixels = int(np.prod(shape))
    head = len(payloads[0]) - pixels
    together = b"".join(payloads)
    if head < 0 or len(together) != len(payloads) * (head + pixels):
        return None
    table = np.frombuffer(together, np.uint8).reshape(len(payloads), head + pixels)
    if head and not (table[:, :head] == table[0, :head]).all():
        return None
    return np.array(table[:, head:]).reshape(len(payloads), *shape)


def read_ahead(load: Callable[[Plan], Records], plans: Iterable[Plan], readers: int) -> Iterator[Records]:
    """Load plans in threads, `readers + 1` batches ahead, and give them in order; closing it ends the threads."""
    pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
    remaining = iter(plans)
    waiting: deque[Future[Records]] = deque()
    try:
        waiting.extend(pool.submit(load, plan) for plan in islice(remaining, readers + 1))
        while waiting:
            records = waiting.popleft().result()
            waiting.extend(pool.submit(load, plan) for plan in islice(remaining, 1))
            yield records
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
