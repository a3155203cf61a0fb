"""A set of records that is read as one, and reading ahead of their use: chunks of neighbours, whole
batches.

A set is an index, a selection of its records, and its shards. Knows no pixel.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader import order
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Loaded, RemoteAccess, Shards
from udl_dist.errors import DataError

I64 = NDArray[np.int64]
P = TypeVar("P")
T = TypeVar("T")
REQUESTS = 16  # chunks that are fetched at the same time
Fetched = tuple[list[bytes], dict[int, str]]
LOOKED_AT = 256  # records: each is a page of the index, read from a disk


class Dataset:
    """Numbered records 0 … `records`-1 of an index."""

    def __init__(
        self,
        index: Index,
        selection: NDArray[Any] | None = None,
        name: str = "all",
        access: RemoteAccess | None = None,
    ) -> None:
        self.index, self._selection, self._name = index, selection, name
        self.shards = Shards(index, access)
        self.records = index.records if selection is None else len(selection)
        if not self.records:
            raise DataError(
                f"{str(index.path)!r}: no record is left to read: change data.held_out_fraction,"
                " data.keys or data.without_labels"
            )

    def part(self, records: int) -> Dataset:
        """A number of its records, drawn at random, the same ones for every seed."""
        drawn = np.sort(order.record_at(0, 0, np.arange(records), self.records))
        part = copy.copy(self)
        part._selection, part.records = self.chosen(drawn), records
        part._name = f"{self._name} {records}"
        return part

    @property
    def fingerprint(self) -> str:
        """A name for exactly these records."""
        return f"{self.index.fingerprint} {self._name}"

    @property
    def record_bytes(self) -> float:
        """The mean length of an encoded image, from a look at some of them."""
        looked = self.index.rows["length"][:: max(1, self.index.records // LOOKED_AT)]
        return float(looked.mean())

    def chosen(self, numbers: I64) -> I64:
        """The records in the index that bear these numbers. [B] -> [B]"""
        return numbers if self._selection is None else self._selection[numbers].astype(np.int64)

    def load(self, numbers: I64) -> Loaded:
        """Read records by their numbers, checked."""
        return self.shards.load(self.chosen(numbers))


class ChunkReader:
    """Reads a data set in chunks of neighbours, in threads, ahead of their use; one for each pass
    over the data.
    """

    def __init__(self, dataset: Dataset, chunk: int, most_bytes: int) -> None:
        self.dataset, self._chunk = dataset, chunk
        # A chunk that shares its lane with another rank is never used up here: beyond this many,
        # the oldest is dropped.
        self._most = max(4, int(most_bytes / max(1.0, chunk * dataset.record_bytes)))
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fetch")
        self._chunks: OrderedDict[int, tuple[Future[Fetched], set[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def expect(self, numbers: I64) -> None:
        """Begin to fetch what will be loaded soon."""
        with self._lock:
            for number in np.unique(numbers // self._chunk).tolist():
                self._asked(number)

    def load(self, numbers: I64) -> Loaded:
        """Read records by their numbers, checked; waits for their chunks."""
        payloads: list[bytes] = [b""] * len(numbers)
        faults = dict[int, str]()
        which = numbers // self._chunk
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number).tolist()
            with self._lock:
                future, unused = self._asked(number)
            found, wrong = future.result()
            for place in places:
                offset = int(numbers[place]) % self._chunk
                if offset not in unused:  # the chunk is still here from the epoch before
                    found, wrong = self._again(number)
                payloads[place] = found[offset]
                found[offset] = b""  # frees the memory record by record
                if offset in wrong:
                    faults[place] = wrong[offset]
                unused.discard(offset)
            if not unused:
                with self._lock:
                    self._chunks.pop(number, None)
        return self.dataset.shards.check(self.dataset.chosen(numbers), payloads, faults)

    def _again(self, number: int) -> Fetched:
        return self.dataset.shards.fetch(self.dataset.chosen(self._numbers(number)))

    def _numbers(self, chunk: int) -> I64:
        return np.arange(chunk * self._chunk, min(self.dataset.records, (chunk + 1) * self._chunk))

    def close(self) -> None:
        """End the threads; what was fetched is forgotten."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._chunks.clear()

    def _asked(self, number: int) -> tuple[Future[Fetched], set[int]]:
        if number not in self._chunks:
            numbers = self._numbers(number)
            future = self._pool.submit(self.dataset.shards.fetch, self.dataset.chosen(numbers))
            self._chunks[number] = (future, set(range(len(numbers))))
            while len(self._chunks) > self._most:
                self._chunks.popitem(last=False)
        return self._chunks[number]


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
