"""A set of records that is read as one: an index, a selection of its records, and its shards. Knows
no pixel.

From object storage runs of neighbours are read at once, ahead of their use, and kept until each was
used.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader import order
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Loaded, RemoteAccess, Shards
from udl_dist.errors import DataError

I64 = NDArray[np.int64]
REQUESTS = 16  # runs that are fetched at the same time
LOOKED_AT = 256  # records: each is a page of the index, read from a disk
Fetched = tuple[list[bytes], dict[int, str]]


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
        """So many of its records, drawn at random once for all seeds."""
        drawn = np.sort(order.record_at(0, 0, np.arange(records), self.records))
        part = copy.copy(self)
        part._selection, part.records, part._name = (
            self.chosen(drawn),
            records,
            f"{self._name} {records}",
        )
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


class Runs:
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
