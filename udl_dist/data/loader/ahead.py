"""Reads ahead of use: chunks of neighbouring records from object storage, and whole batches."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.records import I64, decode_threads
from udl_dist.data.shards.reading import Loaded

P = TypeVar("P")
T = TypeVar("T")
REQUESTS = 16  # chunks fetched at the same time
Fetched = tuple[list[bytes], dict[int, str]]


class ChunkReader:
    """Reads a data set in chunks of neighbours, in threads, for one pass over the data."""

    def __init__(self, dataset: Dataset, chunk: int, most_bytes: int) -> None:
        self.dataset, self._chunk = dataset, chunk
        # A chunk in a lane that two ranks share is never used up here: beyond this number of
        # chunks the oldest is dropped.
        self._most = max(4, int(most_bytes / max(1.0, chunk * dataset.record_bytes)))
        # Threads, never processes: the storage client hangs in a forked child.
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fetch")
        # Per chunk its fetch and the offsets that no batch has used yet.
        self._chunks: OrderedDict[int, tuple[Future[Fetched], set[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def expect(self, numbers: I64) -> None:
        """Start to fetch the chunks of records that will be loaded soon."""
        # The lock also keeps two threads from fetching one chunk twice.
        with self._lock:
            for chunk in np.unique(numbers // self._chunk).tolist():
                self._started(chunk)

    def load(self, numbers: I64) -> Loaded:
        """Read records by their numbers, and verify them; waits for their chunks."""
        payloads: list[bytes] = [b""] * len(numbers)
        faults = dict[int, str]()
        chunks, offsets = np.divmod(numbers, self._chunk)
        for chunk in np.unique(chunks).tolist():
            with self._lock:
                # Usually expected long before; started here if the plan came too late.
                future, unused = self._started(chunk)
            # Outside of the lock, or one slow answer would stop all readers.
            found, wrong = future.result()
            for place in np.flatnonzero(chunks == chunk).tolist():
                offset = int(offsets[place])
                if offset not in unused:  # the chunk is left from the epoch before
                    found, wrong = self._fetch(chunk)
                payloads[place] = found[offset]
                found[offset] = b""  # frees memory record by record, not chunk by chunk
                if offset in wrong:
                    faults[place] = wrong[offset]
                unused.discard(offset)
            # Used up: each record of an epoch is loaded once, so this is when a chunk is over.
            if not unused:
                with self._lock:
                    self._chunks.pop(chunk, None)
        # Verified here, in the caller's thread, so that the fetching threads only wait for answers.
        return self.dataset.shards.check(self.dataset.chosen(numbers), payloads, faults)

    def close(self) -> None:
        """End the threads and drop what was fetched."""
        # A request cannot be interrupted; those that have not begun are dropped.
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._chunks.clear()

    def _fetch(self, chunk: int) -> Fetched:
        first = chunk * self._chunk
        # Neighbours in the selection; where all records are chosen also neighbours in the shard.
        numbers = np.arange(first, min(self.dataset.records, first + self._chunk))
        return self.dataset.shards.fetch(self.dataset.chosen(numbers))

    def _started(self, chunk: int) -> tuple[Future[Fetched], set[int]]:
        """The fetch of a chunk, and the offsets not yet used of it."""
        if chunk not in self._chunks:
            count = min(self._chunk, self.dataset.records - chunk * self._chunk)
            self._chunks[chunk] = (self._pool.submit(self._fetch, chunk), set(range(count)))
            while len(self._chunks) > self._most:
                # If it is needed after all, it is fetched again.
                self._chunks.popitem(last=False)
        return self._chunks[chunk]


def read_ahead(
    load: Callable[[P], T], plans: Iterable[P], readers: int | str, depth: Callable[[P], int]
) -> Iterator[T]:
    """Load plans in threads, at most `depth` of them ahead, and yield them in order."""
    # Decoders release Python's lock: at 64 px two threads gave 2,870 images/s, webdataset's two
    # processes 623 to 944. No fork, no /dev/shm, no pickling.
    threads = decode_threads(readers)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    remaining = iter(plans)
    waiting: deque[Future[T]] = deque()
    try:
        most = 1
        # The size of the first plan, which may be an iterator's only one, decides the depth.
        for plan in islice(remaining, 1):
            # Two per thread: one that is loaded, and one that waits for a slow batch before it.
            most = max(1, min(2 * threads, depth(plan)))
            waiting.append(pool.submit(load, plan))
        waiting.extend(pool.submit(load, plan) for plan in islice(remaining, most))
        while waiting:
            # In order, whatever thread was first: the order of batches is part of exactness.
            loaded = waiting.popleft().result()
            # The next load starts before the caller gets this one, so no thread idles meanwhile.
            waiting.extend(pool.submit(load, plan) for plan in islice(remaining, 1))
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
