"""Reading ahead: chunks of neighbouring records from object storage, and whole batches in
threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.shards.reading import Loaded

I64 = NDArray[np.int64]
P = TypeVar("P")
T = TypeVar("T")
REQUESTS = 16  # chunks that are fetched at the same time
Fetched = tuple[list[bytes], dict[int, str]]


class ChunkReader:
    """Reads a data set in runs of neighbours, in threads, ahead of their use; one for each pass
    over the data.
    """

    def __init__(self, dataset: Dataset, run: int, most_bytes: int) -> None:
        self.dataset, self.run = dataset, run
        # A run that shares its lane with another rank is never used up here: beyond this many, the
        # oldest is dropped.
        self._most = max(4, int(most_bytes / max(1.0, run * dataset.record_bytes)))
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fetch")
        self._runs: OrderedDict[int, tuple[Future[Fetched], set[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def expect(self, numbers: I64) -> None:
        """Begin to fetch what will be loaded soon."""
        with self._lock:
            for number in np.unique(numbers // self.run).tolist():
                self._run(number)

    def load(self, numbers: I64) -> Loaded:
        """Read records by their numbers, checked; waits for their runs."""
        payloads: list[bytes] = [b""] * len(numbers)
        faults = dict[int, str]()
        which = numbers // self.run
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number).tolist()
            with self._lock:
                future, unused = self._run(number)
            found, wrong = future.result()
            for place in places:
                offset = int(numbers[place]) % self.run
                if offset not in unused:  # the run is still here from the epoch before
                    found, wrong = self._again(number)
                payloads[place], found[offset] = (
                    found[offset],
                    b"",
                )  # memory is given back record by record
                if offset in wrong:
                    faults[place] = wrong[offset]
                unused.discard(offset)
            if not unused:
                with self._lock:
                    self._runs.pop(number, None)
        return self.dataset.shards.check(self.dataset.chosen(numbers), payloads, faults)

    def _again(self, number: int) -> Fetched:
        return self.dataset.shards.fetch(self.dataset.chosen(self._numbers(number)))

    def _numbers(self, run: int) -> I64:
        return np.arange(run * self.run, min(self.dataset.records, (run + 1) * self.run))

    def close(self) -> None:
        """End the threads; what was fetched is forgotten."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._runs.clear()

    def _run(self, number: int) -> tuple[Future[Fetched], set[int]]:
        if number not in self._runs:
            numbers = self._numbers(number)
            future = self._pool.submit(self.dataset.shards.fetch, self.dataset.chosen(numbers))
            self._runs[number] = (future, set(range(len(numbers))))
            while len(self._runs) > self._most:
                self._runs.popitem(last=False)
        return self._runs[number]


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
